"""Runs one script for a runner, and ends it when the runner ends, however that happens.

It is started as a file of its own, without the engine, since it has to start fast and to stay when
the runner is killed:

    python -I -S guard.py EXIT_FILE PROCESS_FILE FOLDER GRACE PSUTIL MARK COMMAND...

Its standard input is a pipe that the runner holds open and never writes to. When it is closed, the
script is ended: the runner closes it to stop the script, and the system does when the runner ends.
Every system does, so there is nothing here for one system alone.

What the script prints goes where the guard's own output goes. Its exit code, or why it cannot be
started, is in EXIT_FILE before the guard ends; a guard that had to end the script writes none, and
one that cannot write it ends with code 3. While the script runs, PROCESS_FILE says which process it
is: should the guard itself be killed, whoever finds that file can end the script.
What the script leaves running in its process group is killed when the script has ended. PSUTIL is
the folder to import psutil from, or empty: with it, an end that is not the script's own takes along
what has left the group, too; where there are no process groups, it takes their place. MARK is a
setting of the script's environment that tells its processes from others, or empty.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

_STOP = int(signal.SIGTERM)
_UNWRITTEN = 3


def main(arguments: list[str]) -> int:
    """Run the command and return 0, 1 when told to stop, or 3 without an exit file."""
    exit_file, process_file, folder, grace, psutil, mark, *command = arguments
    # Whatever happens is a byte in this pipe: so nothing is missed between two looks, and nothing
    # raises while Popen asks for the exit code, which would lose it.
    news, tell = os.pipe()
    _listen(tell)
    since = time.time()
    try:
        process = subprocess.Popen(
            command, cwd=folder, stdin=subprocess.DEVNULL, **_group_of_its_own()
        )
    except OSError as error:
        _write(exit_file, {"error": error.strerror or str(error), "errno": error.errno})
        return 0
    with contextlib.suppress(OSError):
        _write(process_file, {"guard": os.getpid(), "script": process.pid, "began": since})
    threading.Thread(target=_watch_runner, args=(tell,), daemon=True).start()
    if not hasattr(signal, "SIGCHLD"):
        threading.Thread(target=_watch_script, args=(process, tell), daemon=True).start()
    told = False
    while process.poll() is None and not told:
        told = os.read(news, 1)[0] == _STOP
    family = _Family(process, psutil, mark)
    if process.poll() is None:
        family.find()
    code = process.poll()  # it may have ended by itself, just before
    try:
        if code is None:
            family.end(float(grace))
            return 1
        family.sweep()
        _write(exit_file, {"code": code})
        return 0
    finally:
        with contextlib.suppress(OSError):
            os.unlink(process_file)


def _listen(tell: int) -> None:
    """Have the signals that matter written to ``tell`` as bytes, where there are such signals."""
    if not hasattr(signal, "SIGCHLD"):
        return
    os.set_blocking(tell, False)
    signal.set_wakeup_fd(tell)
    # With a handler, not ignored: what is ignored stays so in the script, and is not told here.
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: None)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD, signal.SIGTERM})


def _group_of_its_own() -> dict[str, Any]:
    """Return the arguments of Popen for a process group, where there are groups."""
    return {"process_group": 0} if hasattr(os, "killpg") else {}


def _watch_runner(tell: int) -> None:
    """Wait until the pipe from the runner is closed."""
    with contextlib.suppress(OSError):
        while os.read(0, 1):
            pass
    os.write(tell, bytes([_STOP]))


def _watch_script(process: subprocess.Popen[bytes], tell: int) -> None:
    """Wait until the script ends, where no signal says so."""
    process.wait()
    os.write(tell, b"\0")


class _Family:
    """The script and what it has started: a process group, and what psutil finds beside it."""

    def __init__(self, process: subprocess.Popen[bytes], psutil: str, mark: str) -> None:
        self._process = process
        self._marks = [mark] if mark else []
        self._psutil = psutil
        self._members: list[Any] = []
        self._tools: Any = None

    def find(self) -> None:
        """Look for what has left the process group, while its parents can still be asked."""
        if not self._psutil:
            return
        sys.path += [os.path.dirname(os.path.abspath(__file__)), self._psutil]
        # Whatever psutil cannot do here: the script itself is ended all the same.
        with contextlib.suppress(Exception):
            tools = importlib.import_module("family")
            root = tools.running(self._process.pid)
            self._members = tools.relatives([] if root is None else [root], self._marks)
            self._tools = tools

    def end(self, grace: float) -> None:
        """End all of it, politely first."""
        if self._tools is not None:
            self._tools.terminate(filter(self._is_apart, self._members))
        self._signal_group("SIGTERM")
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=grace)
        self._kill()
        self._process.wait()

    def sweep(self) -> None:
        """End what the script has left behind, which had its time."""
        if not hasattr(os, "killpg"):
            self.find()
        self._kill()

    def _kill(self) -> None:
        self._signal_group("SIGKILL")
        if self._tools is not None:
            self._tools.kill(self._members)

    def _is_apart(self, member: Any) -> bool:
        """Return whether a process is in no group that is told anyway: once has to be enough."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            return not hasattr(os, "getpgid") or os.getpgid(member.pid) != self._process.pid
        return False

    def _signal_group(self, name: str) -> None:
        """Signal the group; where there are none, end the script, which is all that can be done."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if hasattr(os, "killpg"):
                os.killpg(self._process.pid, getattr(signal, name))
            else:
                self._process.terminate()


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
