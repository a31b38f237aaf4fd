"""Packed integers, or a pruned ``state_dict``: what the engine itself loads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from engine import Pruner, Quantizer, load_quantized, save_compressed
from engine.errors import ExportError
from engine.export import (
    Exporter,
    OnnxOptions,
    Source,
    export_pruned,
    export_quantized,
    write_safetensors,
)
from engine.files import load_tensors, save_tensors
from engine.speedup import is_smaller

_SAFE = ".safetensors"


class PackedExporter(Exporter):
    """Writes a quantized model's weights as integers of their own width, for ``load_quantized``.

    Everything else is written as it is. A pruned model becomes a ``state_dict`` with zeros, or,
    after ``apply_speedup``, a file for ``engine.load_compressed``. A name that ends in
    ``.safetensors`` gives that format, which has no place for a smaller model; of a quantized one
    it needs ``engine[safetensors]``.
    """

    def write(self, source: Source, path: Path) -> None:
        """Write the weights."""
        compressor = source.compressor
        if isinstance(compressor, Quantizer):
            export_quantized(compressor, path, None, None, None, None, None, OnnxOptions())
        elif is_smaller(source.model):
            if path.suffix == _SAFE:
                raise ExportError(
                    "safetensors has no place for how a smaller model is made smaller\n"
                    "  choose a name that ends in .pth"
                )
            save_compressed(source.model, path)
        elif path.suffix == _SAFE:
            write_safetensors(path, source.shapes(), source.tensors(), {"format": "pt"})
        elif not isinstance(compressor, Pruner) or compressor.speedup_report is not None:
            save_tensors(path, source.model.state_dict())
        else:
            export_pruned(compressor, path, None, None, None, None, OnnxOptions())

    def read(self, path: Path, source: Source) -> Callable[..., Any]:
        """Return a copy of the model with the weights of the file."""
        model: nn.Module = source.plain_copy()
        if source.kind == "quantization":
            return load_quantized(model, path)
        if path.suffix == _SAFE:
            from safetensors.torch import load_model

            load_model(model, path)
            return model
        state = load_tensors(path)
        model.load_state_dict(state["state_dict"] if is_smaller(source.model) else state)
        return model
