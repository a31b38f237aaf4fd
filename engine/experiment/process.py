"""A script as a process: started under a guard, read while it prints, stopped with all it started.

The script writes to its output file itself. So nothing is lost when the runner is killed, and a
process that the script left behind keeps nobody waiting.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from engine.errors import EngineError
from engine.experiment import system
from engine.experiment.orphans import end_orphan, process_file
from engine.experiment.output import Output
from engine.files.job import mark_in

_GUARD = Path(__file__).with_name("guard.py")
#: The code of a guard that could not write the exit file.
_UNWRITTEN = 3
#: Seconds between SIGTERM and SIGKILL.
GRACE = 5.0
#: Seconds between two looks at a script that runs.
PAUSE = 0.03


class Ended(NamedTuple):
    """How a script ended: its exit code (negative: a signal), or why there is none.

    ``lost``: its machine could not be used or was lost, which says nothing of the script.
    """

    code: int | None
    error: str | None = None
    lost: bool = False


class Script:
    """A script that was started.

    Args:
        command: the program and its arguments.
        folder: where it runs.
        environment: all of its environment variables.
        output: the file for what it prints, standard error included.
        exit_file: the file for its exit code.
        limit: bytes of its output that are kept; None: all.

    Raises:
        EngineError: no process can be started, or a file cannot be written.
    """

    def __init__(
        self,
        command: Sequence[str],
        folder: Path,
        environment: Mapping[str, str],
        output: Path,
        exit_file: Path,
        limit: int | None = None,
    ) -> None:
        self.command = tuple(command)
        self._exit_file = exit_file
        self._mark = mark_in(environment)
        start = [sys.executable, "-I", "-S", str(_GUARD), str(exit_file)]
        start += [str(process_file(exit_file)), str(folder), str(GRACE)]
        start += [system.psutil_folder(), self._mark]
        exit_file.unlink(missing_ok=True)
        try:
            with output.open("wb") as log:
                self._guard = subprocess.Popen(
                    [*start, *command],
                    env=dict(environment),
                    stdin=subprocess.PIPE,  # the script is ended when this is closed
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    **_out_of_reach(),
                )
            self._printed = Output(output, limit)
        except OSError as error:
            raise EngineError(f"{command[0]} cannot be started: {error}") from error

    def poll(self) -> Ended | None:
        """Return how the script ended, None while it runs."""
        code = self._guard.poll()
        if code is None:
            return None
        if code == _UNWRITTEN:
            return Ended(None, f"its exit code cannot be kept in {self._exit_file}")
        if (ended := read_exit(self._exit_file)) is not None:
            return ended
        end_orphan(self._exit_file, self._mark)  # the guard was killed
        return Ended(code if code < 0 else -signal.SIGTERM)

    def wait(self, seconds: float = PAUSE) -> None:
        """Wait until the script ends, at most so long."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._guard.wait(timeout=seconds)

    def lines(self, *, rest: bool = False) -> list[str]:
        """Return complete lines printed since the last call; see :meth:`Output.lines`."""
        return self._printed.lines(rest=rest)

    def terminate(self) -> None:
        """Ask the script to end, politely; :meth:`stop` waits until it has."""
        assert self._guard.stdin is not None
        self._guard.stdin.close()

    def stop(self) -> None:
        """End the script and all that it started, politely first; wait until that is done."""
        self.terminate()
        try:
            self._guard.wait(timeout=2 * GRACE)
        except subprocess.TimeoutExpired:
            self._guard.kill()
            self._guard.wait()
        self.poll()

    def close(self) -> None:
        """Let go of the output file, cut to its limit, and of the script if it still runs."""
        ended = self._guard.poll() is not None
        self.terminate()
        self._printed.close(ended=ended)


def _out_of_reach() -> dict[str, Any]:
    """Return the arguments of Popen for a process that a terminal's Ctrl-C does not reach."""
    if hasattr(os, "setsid"):
        return {"start_new_session": True}
    return {"creationflags": getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)}


def read_exit(path: Path) -> Ended | None:
    """Return what a guard wrote when its script had ended; None when it wrote nothing."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if "error" not in record:
            return Ended(int(record["code"]))
        reason, number = str(record["error"]), record.get("errno")
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if number in (2, 8):  # ENOENT: its interpreter is missing; ENOEXEC: it names none
        reason += "; its first line must name its program, such as #!/usr/bin/env python"
    return Ended(None, f"the script cannot be started: {reason}")


def environment_of(
    resource: str, extra: Mapping[str, str], job: Mapping[str, str]
) -> dict[str, str]:
    """Return the environment of a script.

    ``#!/usr/bin/env python`` finds the Python that runs the engine, and prints at once. With the
    resource "cpu" no GPU is seen. ``extra`` is the user's, and wins; ``job`` is the runner's.
    """
    path = [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if resource == "cpu" else {}
    base = {**system.printing(), **os.environ, "PYTHONUNBUFFERED": "1"}
    base["PATH"] = os.pathsep.join(path)
    return {**base, **hidden, **job, **extra}
