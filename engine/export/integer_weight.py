"""A quantized weight as the 8-bit integers and scales that an integer kernel reads."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from engine.errors import ExportError
from engine.quantization.form import AffineForm

#: Relative difference up to which values are those of their grid: rounding of float32.
_TOLERANCE = 1e-5


class IntegerWeight(NamedTuple):
    """A weight is ``scale * (values - zero_point)``.

    Attributes:
        values: int8, or uint8 where zero points differ; the weight's shape.
        scale: float32, positive; () for one, (channels,) along ``axis``, (channels, groups).
        zero_point: int64, of the shape of ``scale``; all 0 wherever that is possible.
        axis: of the channels, None for one scale.
        group_size: how many consecutive weights of a channel share a scale, or None.
        split: the groups of a transposed convolution, see ``engine.attach.layout``.
    """

    values: Tensor
    scale: Tensor
    zero_point: Tensor
    axis: int | None
    group_size: int | None
    split: int = 1

    @property
    def limits(self) -> tuple[int, int]:
        """The smallest and largest integer of the values' type."""
        return (-128, 127) if self.values.dtype == torch.int8 else (0, 255)

    def dequantized(self) -> Tensor:
        """Return the float32 weight."""
        form = AffineForm(self.scale, self.zero_point, 0, 0, self.axis, self.group_size, self.split)
        return form.values(self.values.to(torch.int32))


def integer_weight(
    weight: Tensor, form: AffineForm, factor: Tensor | None = None, channel_axis: int = 0
) -> IntegerWeight:
    """Return ``factor * weight`` on integers: ``factor`` changes scales, never integers.

    A negative scale (a batch norm that turns signs) is made positive by counting downwards,
    ``s (q - z) = -s ((m - q) - (m - z))`` with m the sum of the smallest and largest integer.
    Integers are counted from the zero point where 8 bits hold that, since kernels for symmetric
    weights are the fastest and the most common. Few bits are spread over 8.

    Args:
        weight: the quantized weight, masked if it is, any shape; unchanged.
        form: the grid that its values lie on.
        factor: what the batch norm behind the layer multiplies each channel with, (channels,), or
            None.
        channel_axis: the axis of the weight's output channels, which ``factor`` is along.

    Raises:
        ExportError: values that are not on the grid, or integers of more than 8 bits.
    """
    weight = weight.detach().float().cpu()
    form = AffineForm(form.scale.cpu(), form.zero_point.cpu(), *form[2:])
    integers = form.integers(weight)
    least_step = float(form.scale.abs().min()) if form.scale.numel() else 0.0
    if not torch.allclose(
        form.values(integers), weight, rtol=_TOLERANCE, atol=least_step * _TOLERANCE
    ):
        raise ExportError(
            "its values are not on the grid that affine_form() states\n"
            "  return the scale, zero point and integers that quantize_weight() rounds to"
        )
    if form.qmax - form.qmin > 255 and _span(integers) > 255:
        raise ExportError(
            f"its integers lie between {form.qmin} and {form.qmax}, integer kernels take 8 bits\n"
            '  give the layer fewer "quant_bits", at most 8, or exclude it'
        )
    scale, zero_point, axis = form.scale, form.zero_point, form.axis
    if factor is not None:
        factor = factor.detach().float().cpu()
        channels = factor if form.group_size is None else factor[:, None]
        scale, axis = scale * channels, channel_axis
        zero_point = zero_point.expand_as(scale)
    turned = scale < 0
    total = form.qmin + form.qmax
    on = AffineForm(turned.float(), zero_point, 0, 0, axis, form.group_size, form.split)
    turns = on.broadcast(weight.shape)[0].bool()
    integers = torch.where(turns, total - integers, integers)
    zero_point = torch.where(turned, total - zero_point, zero_point)
    scale = scale.abs()
    zeros = on._replace(zero_point=zero_point).broadcast(weight.shape)[1]
    distance = integers - zeros
    low, high = (int(n) for n in distance.aminmax()) if distance.numel() else (0, 0)
    if low >= -128 and high <= 127:
        spread = _spread(max(-low, high))
        values, zero_point = (distance * spread).to(torch.int8), torch.zeros_like(zero_point)
        scale = scale / spread
    elif high - low <= 255:
        values, zero_point = (distance - low - 128).to(torch.int8), _full(scale, -128 - low)
    else:
        base = min(form.qmin, int(integers.min()))
        values, zero_point = (integers - base).to(torch.uint8), zero_point - base
    return IntegerWeight(
        values.contiguous(),
        scale.contiguous(),
        zero_point.long(),
        axis,
        form.group_size,
        form.split,
    )


def _spread(largest: int) -> int:
    """Return the power of two that brings few bits near to 8: values stay, bit for bit.

    The steps of biases and sums are as much smaller; integers of 2 bits have coarse ones.
    """
    return 1 << max(7 - largest.bit_length(), 0)


def _span(integers: Tensor) -> int:
    return int(integers.max() - integers.min()) if integers.numel() else 0


def _full(like: Tensor, value: int) -> Tensor:
    return torch.full(like.shape, value, dtype=torch.int64)
