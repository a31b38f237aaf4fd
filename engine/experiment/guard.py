"""Runs one script for a runner, and ends it when the runner ends, however that happens.

It is started as a file of its own, without the engine, since it has to start fast and to stay when
the runner is killed:

    python -I -S guard.py RUNNER EXIT_FILE FOLDER GRACE COMMAND...

What the script prints goes where the guard's own output goes. Its exit code, or why it cannot be
started, is in EXIT_FILE before the guard ends; a guard that had to end the script writes none, and
one that cannot write it ends with code 3.
Killed itself with SIGKILL it takes the script along. What the script leaves running in its process
group is killed when the script has ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from typing import Any

_PR_SET_PDEATHSIG = 1
_UNWRITTEN = 3


def main(arguments: list[str]) -> int:
    """Run the command and return 0, 1 when told to stop, or 3 without an exit file."""
    runner, exit_file, folder, grace, *command = arguments
    # Waited for, not handled: a handler that raises while Popen asks for the exit code loses it,
    # and Popen then says 0, even of a script that was killed.
    news = {signal.SIGTERM, signal.SIGCHLD}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, news | {signal.SIGINT})
    signal.signal(signal.SIGCHLD, lambda number, frame: None)  # what is ignored is not queued
    prctl = _prctl()
    prctl(signal.SIGTERM)

    def begin() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        prctl(signal.SIGKILL)

    if os.getppid() != int(runner):
        return 1  # the runner ended before it could be watched
    try:
        process = subprocess.Popen(
            command, cwd=folder, stdin=subprocess.DEVNULL, process_group=0, preexec_fn=begin
        )
    except OSError as error:
        _write(exit_file, {"error": error.strerror or str(error), "errno": error.errno})
        return 0
    told = False
    while process.poll() is None and not told:
        told = signal.sigwait(news) == signal.SIGTERM
    code = process.poll()  # it may have ended by itself, just before
    if code is None:
        _end(process, float(grace))
        return 1
    _kill(process.pid, signal.SIGKILL)
    _write(exit_file, {"code": code})
    return 0


def _prctl() -> Any:
    """Return a function that asks for a signal when the parent ends; does nothing off Linux."""
    if not sys.platform.startswith("linux"):
        return lambda number: None
    import ctypes

    library = ctypes.CDLL(None)
    return lambda number: library.prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)


def _end(process: subprocess.Popen[bytes], grace: float) -> None:
    _kill(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=grace)
    _kill(process.pid, signal.SIGKILL)
    process.wait()


def _kill(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _write(path: str, record: dict[str, Any]) -> None:
    """Write the file under another name and rename it: whoever reads it reads all of it."""
    with open(f"{path}.part", "w", encoding="utf-8") as file:
        json.dump(record, file)
    os.replace(f"{path}.part", path)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except OSError:
        sys.exit(_UNWRITTEN)  # the script has removed its job's folder, or the disk is full
