"""Other packages in benchmarks: measured where installed, left out with the reason if not."""

import sys

ADVICE = "a folder with other packages, made with pip install --no-deps --target FOLDER NAME"


class Peers:
    """What tries other packages; each failure is printed once."""

    def __init__(self, folders):
        sys.path += folders
        self.missing = set()

    def attempt(self, name, function, *arguments):
        """Return what ``function`` returns, or None after telling why ``name`` is left out."""
        if name in self.missing:
            return None
        try:
            return function(*arguments)
        except Exception as error:  # whatever somebody else's package raises
            self.missing.add(name)
            lines = str(error).splitlines() or [""]
            print(f"left out: {name}: {type(error).__name__}: {lines[0]}", flush=True)
            return None


def add_path(parser):
    """Add the option ``--path``, which may be given several times."""
    parser.add_argument("--path", action="append", default=[], help=ADVICE)
