"""A ``torch.export`` program in a file: a graph for PyTorch's own compilers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from engine import Quantizer
from engine.export import (
    Exporter,
    Placement,
    Source,
    explained_by_integers,
    exported_program,
    load_program,
)


class TorchExportExporter(Exporter):
    """Writes the graph that ``torch.export`` makes, for ``torch.export.load``.

    A quantized model has int8 weights, and ``quantized_decomposed`` operators wherever values are
    on a grid; who loads that imports ``torch.ao.quantization.fx._decomposed`` before.

    Args:
        batches: sample inputs, which give ranges to what integer kernels need and has none.
    """

    def __init__(self, batches: Iterable[Any] | None = None) -> None:
        self.batches = batches

    def write(self, source: Source, path: Path) -> list[Placement]:
        """Write the file."""
        import torch

        program, placements = exported_program(source, self.batches)
        torch.export.save(program, path)
        return placements

    def read(self, path: Path, source: Source) -> Callable[..., Any]:
        """Return what ``torch.export.load`` gives."""
        module: Callable[..., Any] = load_program(path)
        return module

    def explained(self, source: Source) -> list[float]:
        """Return what half a step at each rounding makes of the outputs."""
        if not isinstance(source.compressor, Quantizer):
            return super().explained(source)
        return explained_by_integers(source.compressor, source.example, self.batches)
