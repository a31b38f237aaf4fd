"""Formats that are a folder of safetensors: written at once, or a block of the model at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from engine.export.exporter import Exporter
from engine.export.safetensors_stream import write_safetensors
from engine.export.source import Source

#: Shapes and dtypes of tensors, by name, in the order in which they are written.
Stated = dict[str, tuple[torch.Size, torch.dtype]]


class FolderExporter(Exporter):
    """Base of exporters whose files are safetensors and what lies beside them.

    A subclass says what a source becomes, tensor by tensor. A model larger than memory is written
    by the same three methods: the source is then one block, and :meth:`describe` is given all
    layers, of which nothing is known but names and :attr:`SourceLayer.facts`.
    """

    def stated(self, source: Source) -> Stated:
        """Return shape and dtype of each tensor that is written: as the model has them."""
        return dict(source.shapes())

    def tensors(self, source: Source) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors, in the order of :meth:`stated`."""
        yield from source.tensors()

    def describe(self, source: Source, path: Path) -> None:
        """Write what lies beside the weights into a folder: a configuration, a tokenizer."""

    def write(self, source: Source, path: Path) -> None:
        """Write the folder, all weights in one file."""
        file = path / "model.safetensors"
        write_safetensors(file, self.stated(source), self.tensors(source), {"format": "pt"})
        self.describe(source, path)
