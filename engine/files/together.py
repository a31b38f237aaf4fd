"""A file and what belongs to it beside it, written whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from engine.errors import ExportError
from engine.files.whole import PathLike, umask


def write_together(path: PathLike, write: Callable[[Path], object], beside: str) -> Path:
    """Call ``write(folder / name)`` and move what it made to ``path`` when all of it is complete.

    ``write`` is given a name in a temporary folder beside the target and may also write
    ``name + beside`` there, which then goes beside the target. A second file of an earlier export
    that the new one does not need is taken away. Whoever is interrupted between two moves finds no
    file in place of one that reads another's values.

    Raises:
        ExportError: the folder does not exist or cannot be written, or the disk is full; nothing
            was changed.
    """
    import tempfile

    target = Path(path).resolve()
    if target.exists() and not target.is_file():
        raise ExportError(f"cannot write {target}: it is no regular file")
    second = target.with_name(target.name + beside)
    try:
        folder = Path(
            tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=".part")
        )
    except OSError as error:
        raise ExportError(f"cannot write {target}: {error.strerror or error}") from error
    try:
        made, other = folder / target.name, folder / second.name
        write(made)
        written = [each for each in (made, other) if each.exists()]
        for each in written:
            with each.open("rb+") as stream:
                os.fsync(stream.fileno())
            each.chmod(0o666 & ~umask())
        stale = target.is_file() and second.is_file() and _names(target, second.name)
        if other.exists():
            target.unlink(missing_ok=True)
            other.replace(second)
        made.replace(target)
        if stale and other not in written:
            second.unlink(missing_ok=True)
    except (OSError, RuntimeError) as error:
        raise ExportError(f"cannot write {target}: {error}; no file was left there") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return target


def _names(path: Path, name: str) -> bool:
    """Return whether a file holds ``name`` as text."""
    with path.open("rb") as stream:
        before = b""
        while chunk := stream.read(1 << 20):
            if name.encode() in before + chunk:
                return True
            before = chunk[-len(name.encode()) :]
    return False
