"""Files that are written whole or not at all, and loaded without running code from them.

torch is imported where tensors are read or written: writing a text file does not need it.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine.errors import CheckpointError, ExportError
from engine.files.digest import sign_archive, verify
from engine.files.read_back import require_same

PathLike = str | os.PathLike[str]


def write_whole(path: PathLike, write: Callable[[Path], object]) -> Path:
    """Call ``write(temporary)`` and move the result to ``path`` only when it is complete.

    The temporary file is in the same folder, so that the move is one atomic rename; it is removed
    when anything goes wrong (a killed process leaves it under its temporary name).

    Raises:
        ExportError: the folder does not exist or cannot be written, or the disk is full.
    """
    import tempfile  # reading a configuration imports this module and writes nothing

    try:
        # A link stays a link: what it points to is replaced.
        target = Path(path).resolve()
    except TypeError as error:
        raise ExportError(f"a file's path is needed, got {path!r}") from error
    if target.exists() and not target.is_file():
        raise ExportError(f"cannot write {target}: it is no regular file")
    try:
        descriptor, name = tempfile.mkstemp(
            dir=target.parent, prefix=f".{target.name}.", suffix=".part"
        )
        os.close(descriptor)
    except OSError as error:
        raise ExportError(f"cannot write {target}: {error.strerror or error}") from error
    temporary = Path(name)
    try:
        write(temporary)
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
        temporary.chmod(0o666 & ~umask())
        temporary.replace(target)
    except (OSError, RuntimeError) as error:
        # torch's zip writer reports a full disk as RuntimeError.
        raise ExportError(f"cannot write {target}: {error}; no file was left there") from error
    finally:
        temporary.unlink(missing_ok=True)
    return target


def save_tensors(path: PathLike, value: Any, *, read_back: bool = False) -> Path:
    """Save tensors and plain containers with ``torch.save``, whole or not at all.

    The file holds tensors of the CPU: one of a card's can only be read where there is such a card.
    It ends in a digest of itself (see ``digest.py``), which :func:`load_tensors` looks at.
    With ``read_back`` it is read before it gets its name, and compared.
    """
    import torch

    saved = _on_cpu(value, {})

    def write(temporary: Path) -> None:
        torch.save(saved, temporary)
        sign_archive(temporary)
        if read_back:
            require_same(saved, load_tensors(temporary), path)

    return write_whole(path, write)


def load_tensors(path: PathLike, map_location: Any = "cpu") -> Any:
    """Load what ``torch.save`` wrote, tensors and plain containers only (``weights_only=True``).

    Raises:
        CheckpointError: there is no such file, it is cut off, damaged or changed since it was
            written, or it holds code.
    """
    import pickle

    import torch

    try:
        verify(Path(path))
        return torch.load(path, map_location=map_location, weights_only=True)
    except CheckpointError:
        raise
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no file {path}") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be loaded: {error.strerror or error}") from error
    except Exception as error:
        # torch.load raises a different class for each kind of damage. What it says of objects other
        # than tensors is not repeated: it advises to load them all the same.
        code = re.search(r"GLOBAL (\S+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and code is not None:
            what = f"it holds {code[1]}, which is no tensor and could run code"
        elif isinstance(error, torch.OutOfMemoryError):
            what = "there is not enough memory"
        else:
            what = "it is cut off, damaged, or of another kind"
        raise CheckpointError(
            f"{path} cannot be loaded: {what}\n"
            "  it must be a complete file written by torch.save, holding tensors only"
        ) from error


def _on_cpu(value: Any, known: dict[tuple[Any, ...], Any]) -> Any:
    """Return ``value`` with its tensors on the CPU; those that are one tensor remain one."""
    import torch

    if isinstance(value, torch.Tensor):
        if value.device.type in ("cpu", "meta"):
            return value
        if value.layout != torch.strided or not value.numel():
            return value.cpu()
        place = (value.device, value.data_ptr(), value.shape, value.stride(), value.dtype)
        if place not in known:
            known[place] = value.cpu()
        return known[place]
    if isinstance(value, dict):
        moved = copy.copy(value)  # a state_dict has an attribute, too
        for key, inner in value.items():
            moved[key] = _on_cpu(inner, known)
        return moved
    if type(value) in (list, tuple):
        return type(value)(_on_cpu(inner, known) for inner in value)
    return value


def umask() -> int:
    """Return which rights a new file is not given."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
