"""Runs the whole suite on a list of versions, each in an environment of its own.

    python tests/versions.py locked lowest torch==2.14.1 torch==2.11.0,python3.12

An environment is words with commas between them: an interpreter (``python3.12``), requirements for
pip (``torch==2.14.1``), ``locked`` for the versions in constraints.txt, ``lowest`` for the lowest
that pyproject.toml states (``uv`` finds them; the torch of constraints.txt unless one is given).
What is left open is the newest that pip finds. The tests run on a copy of the files that git knows
of, and a Markdown table of the results goes to standard output, a row as soon as it is known.

It is no test, and pytest does not collect it: each environment takes minutes and up to 6 GB, which
are free again afterwards, unless ``--folder`` says where to keep them for the next time.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
#: What torch's wheels for GPUs bring along, each release its own.
OF_TORCH = re.compile(r"(torch|triton|nvidia-[\w-]+|cuda-[\w-]+)==")


class Request(NamedTuple):
    """What an environment is made of."""

    text: str
    python: str
    locked: bool
    lowest: bool
    requirements: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Request:
        """Read one argument of the command line."""
        words = text.split(",")
        pythons = [word for word in words if re.fullmatch(r"python[\d.]+", word)]
        rest = [word for word in words if word not in (*pythons, "locked", "lowest")]
        python = pythons[0] if pythons else sys.executable
        return cls(text, python, "locked" in words, "lowest" in words, tuple(rest))


class Row(NamedTuple):
    """A line of the table."""

    asked: str
    python: str
    torch: str
    passed: int
    failed: int
    skipped: int
    seconds: int
    day: str


def locked_versions(*, with_torch: bool) -> list[str]:
    """Return the lines of constraints.txt, if asked without torch and what comes with it."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.lstrip().startswith("#")]
    return [line for line in pins if with_torch or not OF_TORCH.match(line)]


def lowest_versions(python: Path, requirements: Sequence[str]) -> list[str]:
    """Return the lowest versions that pyproject.toml states, and what fits to them."""
    _run(python, "-m", "pip", "install", "-q", "uv")
    command: list[str | Path] = [python, "-m", "uv", "pip", "compile", "-q"]
    command += ["--resolution", "lowest-direct", "--all-extras", "--strip-extras"]
    command += ["--python", python, "pyproject.toml", "-"]
    given = "\n".join(requirements)
    done = subprocess.run(command, cwd=ROOT, input=given, stdout=subprocess.PIPE, text=True)
    done.check_returncode()
    return [line for line in done.stdout.splitlines() if not OF_TORCH.match(line)]


def set_up(request: Request, folder: Path) -> Path:
    """Make or update the environment in ``folder`` and return its interpreter."""
    python = folder / "venv" / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    if not python.exists():
        subprocess.run([request.python, "-m", "venv", folder / "venv"], check=True)
    requirements = list(request.requirements)
    own_torch = any(re.match(r"torch\b", word) for word in requirements)
    if request.lowest and not own_torch:
        requirements += [pin for pin in locked_versions(with_torch=True) if pin[:7] == "torch=="]
    pins = locked_versions(with_torch=not own_torch) if request.locked else []
    pins += lowest_versions(python, requirements) if request.lowest else []
    constraints = folder / "constraints.txt"
    constraints.write_text("\n".join([*pins, ""]), encoding="utf-8")
    copy_sources(folder / "source")
    source = f"{folder / 'source'}[dev]"
    _run(python, "-m", "pip", "install", "-q", "-c", constraints, *requirements, "-e", source)
    return python


def copy_sources(target: Path) -> None:
    """Copy what git knows of, so that the run does not see what is being written meanwhile."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, stdout=subprocess.PIPE)
    shutil.rmtree(target, ignore_errors=True)
    for name in listed.stdout.decode().split("\0"):
        if name and (ROOT / name).exists():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)


def run_suite(request: Request, folder: Path, options: Sequence[str]) -> Row:
    """Return what became of the suite; what pytest says goes to standard error."""
    python = set_up(request, folder)
    results = folder / "results.xml"
    results.unlink(missing_ok=True)
    command: list[str | Path] = [python, "-m", "pytest", "-q", "-n", "2"]
    command += ["-m", "", f"--junitxml={results}", *options]  # the slow ones, too
    started = time.monotonic()
    subprocess.run(command, cwd=folder / "source", stdout=sys.stderr)
    seconds = round(time.monotonic() - started)
    counts = {"tests": 0, "failures": 0, "errors": 0, "skipped": 0}
    for suite in ET.parse(results).iter("testsuite"):
        counts = {name: count + int(suite.get(name, 0)) for name, count in counts.items()}
    failed, skipped = counts["failures"] + counts["errors"], counts["skipped"]
    passed = counts["tests"] - failed - skipped
    interpreter, torch = json.loads(_run(python, "-c", _VERSIONS))
    day = datetime.date.today().isoformat()
    return Row(request.text, interpreter, torch, passed, failed, skipped, seconds, day)


_VERSIONS = (
    "import json, platform, importlib.metadata as m;"
    "print(json.dumps([platform.python_version(), m.version('torch')]))"
)


def _run(*command: str | Path) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


@contextmanager
def _folder(kept: Path | None, name: str) -> Iterator[Path]:
    if kept is None:
        with tempfile.TemporaryDirectory(prefix="engine-versions-") as made:
            yield Path(made)
    else:
        folder = kept.absolute() / re.sub(r"[^\w.=-]", "-", name)
        folder.mkdir(parents=True, exist_ok=True)
        yield folder


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; return 1 if a test failed or an environment could not be made."""
    raw = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("environments", nargs="+", metavar="ENVIRONMENT")
    parser.add_argument("--folder", type=Path, help="keep the environments here, to use them again")
    parser.add_argument("--pytest", default="", help="further options for pytest, in one word")
    options = parser.parse_args(arguments)
    # A shell's background jobs ignore it, and so would the scripts that tests interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    print(f"| {' | '.join(Row._fields)} |\n|{'---|' * len(Row._fields)}", flush=True)
    failed = False
    for request in map(Request.parse, options.environments):
        with _folder(options.folder, request.text) as folder:
            try:
                row = run_suite(request, folder, options.pytest.split())
            except (subprocess.CalledProcessError, FileNotFoundError) as error:
                print(f"{request.text}: {error}", file=sys.stderr)
                failed = True
                continue
        failed |= row.failed > 0
        print(f"| {' | '.join(map(str, row))} |", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
