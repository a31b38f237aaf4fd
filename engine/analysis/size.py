"""How many bytes a model takes, in memory and on disk."""

from __future__ import annotations

import io
from typing import IO, NamedTuple, cast

import torch
from torch import nn


class ModelSize(NamedTuple):
    """Bytes of parameters, of buffers, and of the file that ``torch.save`` makes of both.

    A tensor that stands in several places counts once.
    """

    parameters: int
    buffers: int
    file: int

    def __str__(self) -> str:
        shares = f"{self.parameters / 1e6:.4g} MB parameters, {self.buffers / 1e6:.4g} MB buffers"
        return f"{self.file / 1e6:.4g} MB on disk ({shares})"


def model_size(model: nn.Module) -> ModelSize:
    """Return the bytes of ``model``: of its parameters, its buffers and its saved ``state_dict``.

    The file is as ``torch.save(model.state_dict(), path)`` writes it, uncompressed: zeros take as
    much room as other numbers. It is counted without being written or held in memory; a real one
    differs by some bytes per tensor, since PyTorch repeats the file's name for each.
    """
    counter = _Counter()
    torch.save(model.state_dict(), cast(IO[bytes], counter))
    return ModelSize(
        sum(p.numel() * p.element_size() for p in model.parameters()),
        sum(b.numel() * b.element_size() for b in model.buffers()),
        counter.bytes,
    )


class _Counter(io.RawIOBase):
    """A stream that counts what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self.bytes += len(data)
        return len(data)
