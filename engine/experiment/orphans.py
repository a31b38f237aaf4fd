"""Scripts whose guard was killed: what ends a script with its runner is gone, and the script runs.

While a script runs there is a file beside its exit file that says which process it is.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from engine.experiment import system
from engine.files import job

if TYPE_CHECKING:
    import psutil

#: How the files are called that say which process a script is.
SUFFIX = ".process"


class Started(NamedTuple):
    """What a guard noted of a script: both processes, and when it was started."""

    guard: int
    script: int
    began: float


def process_file(exit_file: Path) -> Path:
    """Return the file that says which process a script is, while it runs."""
    return exit_file.with_suffix(SUFFIX)


def end_orphan(exit_file: Path, mark: str) -> None:
    """End a script whose guard has ended without ending it; nothing is done where there is none.

    Without psutil only its process group is ended.

    Args:
        exit_file: the file that its exit code would be in.
        mark: the setting by which its processes are known, or empty.
    """
    file = process_file(exit_file)
    started = _read(file)
    if started is None:
        return
    if system.psutil_folder():
        from engine.experiment import family

        family.kill(alive([exit_file], [mark] if mark else []))
    else:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(started.script, signal.SIGKILL)
    with contextlib.suppress(OSError):
        file.unlink()


def end_orphans(folder: Path) -> None:
    """End the scripts in a folder of jobs that no guard looks after.

    Other runners may be at work there. Without psutil nobody knows whether a process is still the
    one that was started, and none is ended.
    """
    files = sorted(folder.glob(f"*{SUFFIX}"))
    if not files or not system.psutil_folder():
        return
    for file in files:
        started = _read(file)
        if started is not None and not _guarded(started):
            end_orphan(file, job.mark(file.with_suffix(".report.json")))


def alive(exit_files: Iterable[Path], marks: Collection[str]) -> list[psutil.Process]:
    """Return the processes of some scripts that run, guards included. It needs psutil."""
    from engine.experiment import family

    roots = []
    for started in filter(None, (_read(process_file(each)) for each in exit_files)):
        roots += [family.running(started.guard, started.began)]
        roots += [family.running(started.script, started.began)]
    return family.relatives([each for each in roots if each is not None], marks)


def _guarded(started: Started) -> bool:
    """Return whether a script's guard runs; if that cannot be known, it does."""
    from engine.experiment import family

    guard = family.running(started.guard)
    script = family.running(started.script, started.began)
    return guard is not None and (script is None or family.is_parent(guard, script))


def _read(file: Path) -> Started | None:
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        return Started(int(record["guard"]), int(record["script"]), float(record["began"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
