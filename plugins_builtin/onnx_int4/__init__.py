"""ONNX whose linear layers are MatMulNBits: 4-bit weights by group, for generating text."""

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

#: The level at which ONNX Runtime puts a layer's input on 8-bit integers.
_INTEGERS = 4


class OnnxInt4Exporter(Exporter):
    """Writes linear layers as ONNX Runtime's ``MatMulNBits``, everything else in float.

    Their integers are of 4 or 8 bits, by groups of 16 or a larger power of two. For one token the
    operator reads an eighth of the bytes; for many at once ``onnx_dynamic`` is the faster file.

    Args:
        accuracy_level: 4: the input of each layer is put on 8-bit integers by block, the fastest;
            1: products are computed in float32; 0: the runtime's own choice.
        opset_version: of the file's other operators; None: PyTorch's choice.
    """

    def __init__(self, accuracy_level: int = _INTEGERS, opset_version: int | None = None) -> None:
        self.accuracy_level, self.opset_version = accuracy_level, opset_version

    def refusals(self, source: Source) -> list[Refused]:
        """Refuse layers that are not called, or are not float32."""
        return refused_linear(source)

    def write(self, source: Source, path: Path) -> None:
        """Write the file."""
        options = OnnxOptions(self.opset_version)
        write_onnx_with(source, path, lambda layer: _NBits(layer, self.accuracy_level), options)

    def read(self, path: Path, source: Source) -> Callable[..., Any]:
        """Return what ONNX Runtime computes."""
        return onnx_reader(path)

    def explained(self, source: Source) -> list[float]:
        """Return what the runtime's rounding of each layer's input makes of the outputs."""
        if self.accuracy_level == 1:
            return super().explained(source)
        return explained_by_inputs(source, _step)


class _NBits(nn.Module):
    """The operator, for ``torch.export``; in PyTorch it computes zeros."""

    qweight: Tensor
    scales: Tensor
    zero_points: Tensor | None
    bias: Tensor | None

    def __init__(self, layer: SourceLayer, accuracy_level: int) -> None:
        super().__init__()
        integers, form = layer.integers()
        assert form.group_size is not None
        bits, symmetric = layer.facts.bits, layer.facts.symmetric
        rows, self.inputs = layer.shape
        # Codes count from the least integer of the type; the operator's own zero is the middle one.
        least = -(1 << (bits - 1)) if symmetric else form.qmin
        zeros = (form.zero_point.reshape(rows, -1) - least).cpu()
        blocks = zeros.shape[1]
        codes = (integers - least).cpu()
        missing = blocks * form.group_size - self.inputs
        codes = torch.cat((codes, zeros[:, -1:].expand(-1, missing)), dim=1)
        self.register_buffer(
            "qweight", _joined(codes, bits).reshape(rows, blocks, form.group_size * bits // 8)
        )
        self.register_buffer("scales", form.scale.reshape(rows, blocks).float().cpu())
        self.register_buffer("zero_points", None if symmetric else _joined(zeros, bits))
        self.bias = layer.module._parameters["bias"]
        self.settings: dict[str, Any] = {
            "K": self.inputs,
            "N": rows,
            "bits": bits,
            "block_size": form.group_size,
            "accuracy_level": accuracy_level,
        }

    def forward(self, x: Tensor) -> Tensor:
        inputs = [x, self.qweight, self.scales]
        inputs += [] if self.zero_points is None else [self.zero_points]
        result: Tensor = torch.onnx.ops.symbolic(
            "com.microsoft::MatMulNBits",
            inputs,
            self.settings,
            dtype=x.dtype,
            shape=(*x.shape[:-1], self.settings["N"]),
            version=1,
        )
        return result if self.bias is None else result + self.bias


def _joined(codes: Tensor, bits: int) -> Tensor:
    """Return codes (rows, n) as bytes (rows, ceil(n * bits / 8)), the first one lowest."""
    codes = codes.to(torch.uint8)
    if bits == 8:
        return codes.contiguous()
    pairs = nn.functional.pad(codes, (0, codes.shape[1] % 2)).unflatten(1, (-1, 2))
    joined: Tensor = pairs[..., 0] | (pairs[..., 1] << 4)
    return joined


def _step(layer: SourceLayer, x: Tensor) -> Tensor:
    """Return the distance of two integers of the input: each block spans -127 to 127."""
    size = layer.facts.group_size
    assert size is not None
    blocks = nn.functional.pad(x, (0, -x.shape[-1] % size)).unflatten(-1, (-1, size))
    step = blocks.abs().amax(-1, keepdim=True) / 127
    spread: Tensor = step.expand_as(blocks).flatten(-2)[..., : x.shape[-1]]
    return spread
