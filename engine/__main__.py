"""The command line's first moment: the installed command, and ``python -m engine``."""

from __future__ import annotations

import signal
import sys


def main() -> int:
    """Run the command line and return its exit code.

    Until it has been imported, and can say so itself, an interrupt ends the process as it ends one
    that is not written in Python: without a traceback.
    """
    here = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # else it is ignored
    if here:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from engine.cli import main as run

    if here:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return run()


if __name__ == "__main__":
    sys.exit(main())
