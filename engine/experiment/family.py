"""A script and all that it has started, whichever the system: by psutil.

The guard imports this file by itself, without the engine, so it imports nothing of it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Iterable

import psutil

#: Seconds that a clock may be off between two looks at when a process began.
_TOLERANCE = 5.0
#: Seconds that a killed process may take to end.
_END = 5.0
_PAUSE = 0.01


def running(process: int, since: float | None = None) -> psutil.Process | None:
    """Return a process that runs; None if it has ended, or its number is another's now.

    Args:
        process: its number.
        since: when it was started, in seconds since the epoch; None: a number that is not free,
            such as that of a child that nobody has waited for.
    """
    with contextlib.suppress(psutil.Error, OSError):
        found = psutil.Process(process)
        own = since is None or abs(found.create_time() - since) < _TOLERANCE
        return found if own and _runs(found) else None
    return None


def is_parent(parent: psutil.Process, child: psutil.Process) -> bool:
    """Return whether a process started another one, and is not only called as the one that did."""
    with contextlib.suppress(psutil.Error, OSError):
        return child.ppid() == parent.pid and parent.create_time() <= child.create_time()
    return False


def relatives(roots: Iterable[psutil.Process], marks: Collection[str]) -> list[psutil.Process]:
    """Return the processes of some scripts that run: all below ``roots``, and all that are marked.

    What a script has started is known by its parents, and, where a parent has ended, by an
    environment variable. Some systems show the environment of their own programs to nobody. This
    process and those that it runs in are none of them.

    Args:
        roots: processes known to belong to the scripts.
        marks: settings ``NAME=value`` of environment variables, one of which each script was
            given; what it starts has it, too.
    """
    found = {each.pid: each for each in roots}
    if marks:
        found |= {each.pid: each for each in psutil.process_iter() if _has(each, marks)}
    for each in list(found.values()):
        with contextlib.suppress(psutil.Error, OSError):
            found |= {child.pid: child for child in each.children(recursive=True)}
    for each in _own():
        found.pop(each.pid, None)
    return [each for each in found.values() if _runs(each)]


def terminate(processes: Iterable[psutil.Process]) -> None:
    """Ask processes to end; on Windows, which has no way to ask, end them."""
    for each in processes:
        with contextlib.suppress(psutil.Error, OSError):
            each.terminate()


def kill(processes: Iterable[psutil.Process]) -> None:
    """End processes and what they have started since, and wait until they have ended."""
    ended = relatives(processes, ())
    for each in ended:
        with contextlib.suppress(psutil.Error, OSError):
            each.kill()
    until = time.monotonic() + _END
    while any(map(_runs, ended)) and time.monotonic() < until:
        time.sleep(_PAUSE)


def _has(process: psutil.Process, marks: Collection[str]) -> bool:
    with contextlib.suppress(psutil.Error, OSError):
        settings = process.environ()
        return any(settings.get(name) == value for name, _, value in map(_parts, marks))
    return False


def _parts(setting: str) -> tuple[str, str, str]:
    return setting.partition("=")


def _runs(process: psutil.Process) -> bool:
    """Return whether a process runs; one that has ended and that nobody has asked for does not."""
    with contextlib.suppress(psutil.Error, OSError):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _own() -> list[psutil.Process]:
    """Return this process and those that it runs in."""
    found = [psutil.Process()]
    with contextlib.suppress(psutil.Error, OSError):
        found += found[0].parents()
    return found
