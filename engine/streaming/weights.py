"""The weights of a folder of safetensors, read one tensor at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from engine.errors import EngineError, nearest
from engine.export.safetensors_stream import DTYPES

_INDEX = "model.safetensors.index.json"
_DTYPE_OF = {name: dtype for dtype, name in DTYPES.items()}


class Place(NamedTuple):
    """Where a tensor lies: bytes of a file, and what they are."""

    path: Path
    begin: int
    end: int
    dtype: torch.dtype
    shape: tuple[int, ...]


class Weights:
    """Names of all tensors of a folder, and their values when they are asked for.

    Files are read, not mapped: a tensor takes memory for as long as somebody holds it.

    Args:
        folder: with ``model.safetensors``, or shards and ``model.safetensors.index.json``.

    Raises:
        EngineError: there is no such folder, a shard is missing or cut off, or a file is no
            safetensors file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = _files(folder)
        self._places: dict[str, Place] = {}
        for file in self.files:
            self._places |= _places(file)

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def place(self, name: str) -> Place:
        """Return where a tensor lies.

        Raises:
            EngineError: no file holds it.
        """
        if name not in self._places:
            near = nearest(name, self._places)
            hint = f'\n  did you mean "{near}"?' if near else ""
            raise EngineError(f'no file of {self.folder} holds the tensor "{name}"{hint}')
        return self._places[name]

    def read(self, name: str) -> Tensor:
        """Return a tensor, in memory of its own.

        Raises:
            EngineError: no file holds it, or the file has become shorter.
        """
        path, begin, end, dtype, shape = self.place(name)
        values = torch.empty(shape, dtype=dtype)
        if end > begin:
            with path.open("rb", buffering=0) as stream:
                stream.seek(begin)
                into = values.view(-1).view(torch.uint8).numpy().data
                while into:
                    count = stream.readinto(into)
                    if not count:
                        raise EngineError(f"{path} is cut off: it ends within {name}")
                    into = into[count:]
        return values


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise EngineError(f"there is no folder {folder}")
    index, single = folder / _INDEX, folder / "model.safetensors"
    if not index.exists():
        if single.exists():
            return [single]
        raise EngineError(
            f"{folder} holds no model: neither model.safetensors nor {_INDEX} is there\n"
            "  it needs weights in safetensors, as save_pretrained writes them"
        )
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise EngineError(f"{index} is no index of shards: {error}") from error
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        verb = "is" if len(missing) == 1 else "are"
        raise EngineError(
            f"{folder}: {len(missing)} of {len(names)} shards {verb} missing: {shown}\n"
            "  fetch the folder again"
        )
    return [folder / name for name in names]


def _places(file: Path) -> dict[str, Place]:
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > size - 8:
                raise ValueError("its header is longer than the file")
            header: dict[str, Any] = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        found = {name: _place(file, 8 + length, **entry) for name, entry in header.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise EngineError(f"{file} is no whole safetensors file: {error}") from error
    last = max((place.end for place in found.values()), default=0)
    if last > size:
        raise EngineError(f"{file} is cut off: {size} bytes of {last}\n  fetch it again")
    return found


def _place(file: Path, start: int, dtype: str, shape: list[int], data_offsets: list[int]) -> Place:
    if dtype not in _DTYPE_OF:
        raise EngineError(f"{file} holds {dtype}, which is none of {', '.join(_DTYPE_OF)}")
    begin, end = data_offsets
    own = torch.Size(shape).numel() * _DTYPE_OF[dtype].itemsize
    if end - begin != own:
        raise ValueError(f"a tensor of {own} bytes has {end - begin}")
    return Place(file, start + begin, start + end, _DTYPE_OF[dtype], tuple(shape))
