"""Results written shard by shard: a unit becomes a file, and an index names them all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.attach.compressor import Compressor
from engine.export import FolderExporter, SourceLayer, Stated
from engine.export.safetensors_stream import write_safetensors
from engine.export.source import Source
from engine.export.source_layer import GridFacts
from engine.files import write_whole
from engine.streaming.skeleton import Skeleton

#: Beside weights, a folder of transformers has files of these kinds.
_BESIDE = (".json", ".txt", ".model", ".jinja", ".tiktoken")
_INDEX = "model.safetensors.index.json"


class UnitSource(Source):
    """What a compressor made of one unit, its other tensors included."""

    def __init__(self, compressor: Compressor, keys: Sequence[str]) -> None:
        super().__init__(compressor, None, "no")
        self._keys = keys

    def _state(self) -> dict[str, Any]:
        state = super()._state()
        return {key: state[key] for key in self._keys}


class KnownLayer(SourceLayer):
    """A layer of which nothing is known any more but its name and its grid's facts."""

    def __init__(self, name: str, module: torch.nn.Module, facts: GridFacts) -> None:
        self.name, self.module, self.key = name, module, f"{name}.weight"
        self.kinds = ("weight",)
        self.__dict__["facts"] = facts


class WholeSource(Source):
    """All layers of a model whose weights are written already."""

    def __init__(self, model: torch.nn.Module, layers: Mapping[str, GridFacts]) -> None:
        self.model, self.kind, self.compare = model, "quantization", "no"
        self.args, self.kwargs, self.has_example, self.example = (), {}, False, None
        self.layers = {
            name: KnownLayer(name, model.get_submodule(name), facts)
            for name, facts in layers.items()
        }


class Shards:
    """The files of a folder that is not finished.

    Args:
        folder: where they are; made if need be.
        count: how many there will be.
    """

    def __init__(self, folder: Path, count: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._count = count

    def name(self, number: int) -> str:
        """Return the name of a shard, counted from 1."""
        return f"model-{number:05}-of-{self._count:05}.safetensors"

    def write(self, number: int, exporter: FolderExporter, source: Source) -> dict[str, int]:
        """Write a compressed unit, whole or not at all; return the bytes of each tensor."""
        return self._written(number, exporter.stated(source), exporter.tensors(source))

    def copy(self, number: int, skeleton: Skeleton, keys: Sequence[str]) -> dict[str, int]:
        """Write tensors as the model has them; they are loaded."""
        state = skeleton.model.state_dict(keep_vars=True)
        stated: Stated = {key: (state[key].shape, state[key].dtype) for key in keys}
        return self._written(number, stated, ((key, state[key]) for key in keys))

    def close(self, tensors: Mapping[int, Mapping[str, int]], source: Path) -> None:
        """Write the index, and copy what lies beside the weights of ``source``."""
        weight_map = {
            name: self.name(number) for number, sizes in tensors.items() for name in sizes
        }
        total = sum(size for sizes in tensors.values() for size in sizes.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        write_whole(self.folder / _INDEX, lambda path: path.write_text(text, encoding="utf-8"))
        for file in sorted(source.iterdir()):
            if file.is_file() and file.suffix in _BESIDE and not file.name.endswith("index.json"):
                write_whole(self.folder / file.name, _copying(file))

    def _written(
        self, number: int, stated: Stated, tensors: Iterable[tuple[str, Tensor]]
    ) -> dict[str, int]:
        def write(path: Path) -> None:
            write_safetensors(path, stated, tensors, {"format": "pt"})

        write_whole(self.folder / self.name(number), write)
        return {name: _bytes(shape, dtype) for name, (shape, dtype) in stated.items()}


def _bytes(shape: torch.Size, dtype: torch.dtype) -> int:
    return shape.numel() * dtype.itemsize


def _copying(file: Path) -> Callable[[Path], object]:
    return lambda path: shutil.copyfile(file, path)
