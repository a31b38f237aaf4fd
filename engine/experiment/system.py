"""What differs between the systems that scripts run on: each difference in one place."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from engine.errors import EngineError

#: What Windows runs by itself.
_PROGRAMS = (".exe", ".com", ".bat", ".cmd")
#: Where Linux lists them.
_CARDS = Path("/proc/driver/nvidia/gpus")
#: The start of a script is enough to find its first line.
_FIRST = 1024


def windows() -> bool:
    """Return whether this is Windows."""
    return sys.platform == "win32"


def macos() -> bool:
    """Return whether this is macOS."""
    return sys.platform == "darwin"


def split(command: str) -> list[str]:
    """Return the words of a command, as the shell has them.

    On Windows a backslash parts folders.

    Raises:
        ValueError: a quotation is not closed.
    """
    words = shlex.shlex(command, posix=True, punctuation_chars=False)
    words.whitespace_split = True
    words.commenters = ""
    if windows():
        words.escape = ""
    return list(words)


def joined(command: Sequence[str]) -> str:
    """Return a command as a person types it into the system's shell."""
    return subprocess.list2cmdline(command) if windows() else shlex.join(command)


def program_of(script: Path) -> list[str]:
    """Return the words before a script that start it: none, where a script is a program.

    On Windows nothing reads a script's first line, which names its interpreter: here it is read.

    Raises:
        EngineError: it says nothing that Windows could run.
    """
    if not windows() or script.suffix.lower() in _PROGRAMS:
        return []
    with script.open("rb") as file:
        first = file.read(_FIRST).partition(b"\n")[0].decode("utf-8", errors="replace").strip()
    words = split(first[2:]) if first.startswith("#!") else []
    if words and Path(words[0]).name.removesuffix(".exe") == "env":
        words = [word for word in words[1:] if word != "-S"]
    if words and Path(words[0]).is_file():
        return words
    python = Path(words[0]).name if words else "python" if script.suffix == ".py" else ""
    if python.startswith("python"):
        return [sys.executable, *words[1:]]
    raise EngineError(
        f"Windows cannot run {script.name}: it needs a name that ends in .py, .exe, .bat or .cmd, "
        "or a first line such as #!/usr/bin/env python"
    )


def printing() -> dict[str, str]:
    """Return what lets a script in Python print any text into a file, where it could not."""
    return {"PYTHONIOENCODING": "utf-8"} if windows() else {}


def psutil_folder() -> str:
    """Return the folder that psutil is imported from; empty without psutil.

    Raises:
        EngineError: this system cannot end what a script has started without it.
    """
    import importlib.util

    found = importlib.util.find_spec("psutil")
    if found is None or found.origin is None:
        if windows():
            raise EngineError(
                "Windows ends no script with what it has started, so that engine run needs psutil "
                "there\n  pip install psutil"
            )
        return ""
    return str(Path(found.origin).parents[1])


def require_psutil() -> None:
    """Raise EngineError when psutil is not installed."""
    try:
        import psutil  # noqa: F401
    except ImportError as error:
        raise EngineError(
            "an automatic experiment needs psutil\n  pip install 'engine[search]'"
        ) from error


def gpus() -> list[str]:
    """Return the numbers of the NVIDIA GPUs of this machine, without loading what runs on them."""
    if _CARDS.is_dir():
        count = len(list(_CARDS.iterdir()))
    else:
        try:
            said = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return []
        count = sum(line.startswith("GPU ") for line in said.stdout.splitlines())
    return [str(index) for index in range(count)]


def cores() -> int:
    """Return how many cores this process may use. It needs psutil."""
    import psutil

    process = psutil.Process()
    if hasattr(process, "cpu_affinity"):  # macOS binds no process to cores
        return len(process.cpu_affinity())
    return psutil.cpu_count() or os.cpu_count() or 1
