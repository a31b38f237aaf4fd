"""A folder of files, written whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from engine.errors import ExportError
from engine.files.whole import PathLike, umask


def write_folder(path: PathLike, write: Callable[[Path], object]) -> Path:
    """Call ``write(temporary)`` on an empty folder and move it to ``path`` when it is complete.

    A folder that is there already is replaced where it holds nothing but files of the names that
    were written: an earlier export. Whoever is interrupted between the two moves finds none.

    Raises:
        ExportError: ``path`` is a file, or a folder with other files in it; or nothing can be
            written there. Nothing was changed.
    """
    import tempfile

    target = Path(path).resolve()
    if target.exists() and not target.is_dir():
        raise ExportError(f"cannot write {target}: it is a file, a folder is to be written")
    try:
        made = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=".part"))
    except OSError as error:
        raise ExportError(f"cannot write {target}: {error.strerror or error}") from error
    former = made.with_name(f"{made.name}.former")
    try:
        write(made)
        _refuse_others(target, made)
        for each in made.rglob("*"):
            if each.is_file():
                with each.open("rb+") as stream:
                    os.fsync(stream.fileno())
                each.chmod(0o666 & ~umask())
        made.chmod(0o777 & ~umask())
        if target.exists():
            target.replace(former)
        made.replace(target)
    except (OSError, RuntimeError) as error:
        if former.exists() and not target.exists():
            former.replace(target)
        raise ExportError(f"cannot write {target}: {error}; nothing was left there") from error
    finally:
        shutil.rmtree(made, ignore_errors=True)
        shutil.rmtree(former, ignore_errors=True)
    return target


def _refuse_others(target: Path, made: Path) -> None:
    if not target.is_dir():
        return
    others = sorted({p.name for p in target.iterdir()} - {p.name for p in made.iterdir()})
    if others:
        raise ExportError(
            f"cannot write {target}: it is a folder with other files in it, {others[0]} among "
            "them\n  choose a name that there is not yet, or empty the folder"
        )
