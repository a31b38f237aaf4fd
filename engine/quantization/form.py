"""The affine form of what a quantizer does: what an export to integers is made from."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from engine.attach.layout import Layout, scale_layout
from engine.attach.wrapper import Wrapper
from engine.errors import ExportError
from engine.quantization.affine import wide
from engine.quantization.quant_types import QuantType


class AffineForm(NamedTuple):
    """Values are ``scale * (q - zero_point)`` with integers q in [qmin, qmax].

    ``scale``, float32, and ``zero_point``, int32, have shape () for one grid, (channels,) along
    ``axis`` of a weight, or (channels, groups) where each ``group_size`` consecutive weights of a
    channel share one; ``split`` is the number of groups of a transposed convolution, see
    :class:`Layout`. A scale is negative where a batch norm that turns signs was folded in.
    """

    scale: Tensor
    zero_point: Tensor
    qmin: int
    qmax: int
    axis: int | None = None
    group_size: int | None = None
    split: int = 1

    def broadcast(self, shape: torch.Size) -> tuple[Tensor, Tensor]:
        """Return scale and zero point so that they broadcast against a tensor of ``shape``."""
        if self.axis is None:
            return self.scale, self.zero_point
        layout = Layout(self.axis, self.split)
        if self.group_size is None:
            return layout.spread(self.scale, shape), layout.spread(self.zero_point, shape)
        members = shape.numel() // max(layout.count(shape), 1)
        scale, zero_point = (
            layout.restored(each.repeat_interleave(self.group_size, 1)[:, :members], shape)
            for each in (self.scale, self.zero_point)
        )
        return scale, zero_point

    def integers(self, tensor: Tensor) -> Tensor:
        """Return the int32 integers of ``tensor``, rounded half to even and clamped."""
        scale, zero_point = self.broadcast(tensor.shape)
        q = (wide(tensor) * scale.reciprocal()).round_() + zero_point
        return q.clamp_(self.qmin, self.qmax).to(torch.int32)

    def values(self, integers: Tensor) -> Tensor:
        """Return the float32 values that ``integers`` stand for."""
        scale, zero_point = self.broadcast(integers.shape)
        return (integers - zero_point).float() * scale


def kept_form(wrapper: Wrapper, quant_type: QuantType, quantizer: str) -> AffineForm:
    """Return the affine form of what ``wrapper`` keeps for ``quant_type``.

    This is its grid; or, of a quantizer without grids, the attributes ``{key}_scale``,
    ``{key}_zero_point``, ``{key}_qmin`` and ``{key}_qmax`` of one grid for the whole tensor.

    Raises:
        ExportError: there is neither, or an activation has had no range yet; the layer is named.
    """
    key = quant_type.key
    grid = wrapper.grids.get(key)
    parts: list[Any] = [
        getattr(wrapper, f"{key}_{n}", None) for n in ("scale", "zero_point", "qmin", "qmax")
    ]
    if not wrapper.__dict__.get(f"{key}_seen", True):
        raise ExportError(
            f'the {key} of layer "{wrapper.name}" has no range yet: run batches through the model '
            "in training mode, or calibrate it, before it is exported"
        )
    if any(part is None for part in parts):
        raise ExportError(
            f'{quantizer} has no affine form for the {key} of layer "{wrapper.name}": it cannot be '
            "exported as integers with a scale and a zero point"
        )
    scale, zero_point, qmin, qmax = parts
    scale = torch.as_tensor(scale, dtype=torch.float32).detach().clone()
    zero_point = torch.as_tensor(zero_point).detach().round().to(torch.int32)
    axis, group_size, split = None, None, 1
    if grid is not None and grid.scheme.axis is not None:
        axis, group_size, split = grid.scheme.axis, grid.scheme.group_size, grid.scheme.split
    if scale.dim():
        if axis is None:
            axis, split = _axis_of(wrapper, scale)
        flat = (-1,) if group_size is None else (scale.shape[0], -1)
        scale, zero_point = scale.reshape(flat), zero_point.reshape(flat)
    return AffineForm(scale, zero_point, int(qmin), int(qmax), axis, group_size, split)


def _axis_of(wrapper: Wrapper, scale: Tensor) -> tuple[int, int]:
    """Return the axis, and the groups, of the channels that ``scale`` is one each of."""
    long = [dim for dim, size in enumerate(scale.shape) if size > 1]
    layout = scale_layout(wrapper.module)
    if layout is not None and layout.count(wrapper.weight.shape) == scale.numel():
        return layout
    if len(long) == 1 and scale.dim() == wrapper.weight.dim():
        return long[0], 1
    raise ExportError(
        f'the scales of layer "{wrapper.name}", {tuple(scale.shape)}, are not one for each output '
        f"channel of its weight, {tuple(wrapper.weight.shape)}\n"
        "  give them the weight's number of dimensions, 1 but for the channels'"
    )
