"""The affine form of what a quantizer does: what an export to integers is made from."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from engine.attach.wrapper import Wrapper
from engine.errors import ExportError
from engine.quantization.affine import wide
from engine.quantization.quant_types import QuantType
from engine.quantization.scheme import channel_axis


class AffineForm(NamedTuple):
    """Values are ``scale * (q - zero_point)`` with integers q in [qmin, qmax].

    ``scale``, float32, and ``zero_point``, int32, have shape () for one grid, (channels,) along
    ``axis`` of a weight, or (channels, groups) where each ``group_size`` consecutive weights of a
    channel share one. A scale is negative where a batch norm that turns signs was folded in.
    """

    scale: Tensor
    zero_point: Tensor
    qmin: int
    qmax: int
    axis: int | None = None
    group_size: int | None = None

    def broadcast(self, shape: torch.Size) -> tuple[Tensor, Tensor]:
        """Return scale and zero point so that they broadcast against a tensor of ``shape``."""
        if self.axis is None:
            return self.scale, self.zero_point
        if self.group_size is None:
            view = [-1 if dim == self.axis else 1 for dim in range(len(shape))]
            return self.scale.view(view), self.zero_point.view(view)
        moved = [shape[self.axis], *shape[: self.axis], *shape[self.axis + 1 :]]
        members = shape.numel() // max(shape[self.axis], 1)
        scale, zero_point = (
            each.repeat_interleave(self.group_size, 1)[:, :members].view(moved)
            for each in (self.scale, self.zero_point)
        )
        return scale.movedim(0, self.axis), zero_point.movedim(0, self.axis)

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
    axis = group_size = None
    if grid is not None and grid.scheme.axis is not None:
        axis, group_size = grid.scheme.axis, grid.scheme.group_size
    if scale.dim():
        flat = (-1,) if group_size is None else (scale.shape[0], -1)
        scale, zero_point = scale.reshape(flat), zero_point.reshape(flat)
        axis = channel_axis(wrapper.module) if axis is None else axis
    return AffineForm(scale, zero_point, int(qmin), int(qmax), axis, group_size)
