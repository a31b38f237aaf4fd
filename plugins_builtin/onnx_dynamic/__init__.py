"""ONNX whose linear layers put their input on integers when they run: for prompts and encoders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine.export import (
    Exporter,
    OnnxOptions,
    Refused,
    Source,
    SourceLayer,
    explained_by_inputs,
    onnx_reader,
    refused_linear,
    write_onnx_with,
)


class OnnxDynamicExporter(Exporter):
    """Writes linear layers as ``DynamicQuantizeLinear`` and ``MatMulInteger``, all else in float.

    The input of a layer is put on 256 integers over its own extremes, for each call, so that no
    ranges are needed; weights are int8. Operators of ONNX itself: any runtime reads the file.

    Args:
        opset_version: of the file's operators; None: PyTorch's choice.
    """

    def __init__(self, opset_version: int | None = None) -> None:
        self.opset_version = opset_version

    def refusals(self, source: Source) -> list[Refused]:
        """Refuse layers that are not called, or are not float32."""
        return refused_linear(source)

    def write(self, source: Source, path: Path) -> None:
        """Write the file."""
        write_onnx_with(source, path, _Dynamic, OnnxOptions(self.opset_version))

    def read(self, path: Path, source: Source) -> Callable[..., Any]:
        """Return what ONNX Runtime computes."""
        return onnx_reader(path)

    def explained(self, source: Source) -> list[float]:
        """Return what the runtime's rounding of each layer's input makes of the outputs."""
        return explained_by_inputs(source, _step)


class _Dynamic(nn.Module):
    """The operators, for ``torch.export``; in PyTorch they compute zeros."""

    integers: Tensor
    zero_point: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, layer: SourceLayer) -> None:
        super().__init__()
        integers, form = layer.integers()
        self.rows = layer.shape[0]
        # The middle of 8 bits is 0 for kernels; symmetric grids have it there already.
        moved = 0 if form.qmin >= -128 and form.qmax <= 127 else -128
        self.register_buffer("integers", (integers + moved).to(torch.int8).T.contiguous().cpu())
        zeros = (form.zero_point + moved).to(torch.int8).reshape(-1).expand(self.rows)
        self.register_buffer("zero_point", zeros.contiguous().cpu())
        scale = form.scale.reshape(-1).float().expand(self.rows)
        self.register_buffer("scale", scale.contiguous().cpu())
        self.bias = layer.module._parameters["bias"]

    def forward(self, x: Tensor) -> Tensor:
        operators = torch.onnx.ops  # which takes a while to import
        rounded, step, zero = operators.symbolic_multi_out(
            "DynamicQuantizeLinear",
            [x],
            dtypes=(torch.uint8, torch.float32, torch.uint8),
            shapes=(x.shape, (), ()),
        )
        products = operators.symbolic(
            "MatMulInteger",
            [rounded, self.integers, zero, self.zero_point],
            dtype=torch.int32,
            shape=(*x.shape[:-1], self.rows),
        )
        result: Tensor = products.float() * (step * self.scale)
        return result if self.bias is None else result + self.bias


def _step(layer: SourceLayer, x: Tensor) -> Tensor:
    """Return the distance of two of the 256 integers over the input's extremes, 0 among them."""
    return (x.max().clamp(min=0) - x.min().clamp(max=0)) / 255
