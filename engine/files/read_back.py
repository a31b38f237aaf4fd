"""Whether what was read from a file is what was to be written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.errors import ExportError


def require_same(written: Any, read: Any, path: object) -> None:
    """Raise ExportError where a file that was just written holds something else.

    Args:
        written: tensors and plain containers; tensors on any device.
        read: what the file gives.
        path: the file, for the message.
    """
    where = _difference(written, read, "")
    if where is not None:
        raise ExportError(
            f"{path} does not hold what was written to it, at {where or 'its top'}; no file was "
            "left there\n  the disk or its file system may be damaged"
        )


def _difference(written: Any, read: Any, where: str) -> str | None:
    import torch

    if isinstance(written, torch.Tensor):
        if not isinstance(read, torch.Tensor) or written.is_meta:
            return None if getattr(read, "is_meta", False) else where
        ours = written.detach().to(read.device)
        same = ours.shape == read.shape and ours.dtype == read.dtype
        if not same or ours.layout != torch.strided:
            return None if same else where
        bits = [t.contiguous().flatten().view(torch.uint8) for t in (ours, read)]
        return None if torch.equal(*bits) else where
    if isinstance(written, Mapping):
        if not isinstance(read, Mapping) or list(written) != list(read):
            return where
        pairs = [(key, written[key], read[key]) for key in written]
    elif isinstance(written, (tuple, list)):
        if not isinstance(read, (tuple, list)) or len(written) != len(read):
            return where
        pairs = [(place, *both) for place, both in enumerate(zip(written, read, strict=True))]
    else:
        return None if written == read or written != written else where
    for key, ours, theirs in pairs:
        found = _difference(ours, theirs, f"{where}/{key}")
        if found is not None:
            return found
    return None
