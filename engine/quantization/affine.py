"""Affine quantization, ``r = S (q - Z)``: Jacob et al. 2018, arXiv 1712.05877, section 2.1."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

_WIDE = frozenset((torch.float32, torch.float64))
_TINY, _LARGE = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max
#: Elements up to which :func:`is_small` holds.
SMALL = 1 << 15


def affine_parameters(
    low: Tensor, high: Tensor, qmin: int, qmax: int, *, symmetric: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the scale and zero point that map [low, high] onto the integers [qmin, qmax].

    The range is widened to hold zero and nudged so that zero is an integer (eq. 1 and section
    3.1): S = (high - low) / (qmax - qmin), Z = round(qmin - low / S), half to even. Symmetric:
    Z = 0 and S = max(-low, high) / qmax. A range of nothing but zero, and one that is NaN or
    infinite, gives S = 1 and the Z nearest to 0.

    Args:
        low: smallest value, any shape (one per channel, say), floating.
        high: largest value, same shape.
        qmin: smallest integer; negative where ``symmetric``.
        qmax: largest integer, above ``qmin``.
        symmetric: whether the zero point is fixed at 0.

    Returns:
        scale, zero_point: of the shape of ``low``; float32, or float64 for a float64 range (a
        zero point of 16 bits does not fit half precision). The zero point is a whole number.

    Raises:
        ValueError: ``qmax <= qmin``, or ``symmetric`` and 0 is not between the two.
    """
    if qmax <= qmin or (symmetric and not qmin < 0 < qmax):
        rule = "qmin < 0 < qmax" if symmetric else "qmin < qmax"
        raise ValueError(f"the integers must satisfy {rule}, got [{qmin}, {qmax}]")
    low, high = wide(low), wide(high)
    if symmetric:
        scale = torch.maximum(-low, high) / qmax
    else:
        low, high = low.clamp(max=0), high.clamp(min=0)
        scale = (high - low) / (qmax - qmin)
    # Neither NaN nor infinity nor below the normal numbers, of which there is no inverse.
    usable = scale.clamp(_TINY, _LARGE) == scale
    scale = scale.where(usable, 1.0)
    if symmetric:
        return scale, torch.zeros_like(scale)
    zero_point = (qmin - low / scale).round_().where(usable, 0.0)
    return scale, zero_point.clamp_(qmin, qmax)


def wide(tensor: Tensor) -> Tensor:
    """Return ``tensor`` in the dtype that quantization computes in: at least float32."""
    if tensor.dtype in _WIDE:
        return tensor
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def quantize(tensor: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int) -> Tensor:
    """Return ``clamp(round(tensor / scale) + zero_point, qmin, qmax)``, whole numbers.

    Rounding is half to even; infinity clips, NaN stays NaN. ``scale`` and ``zero_point`` broadcast
    against ``tensor``; the result has the dtype of :func:`wide`.
    """
    return (wide(tensor) * scale.reciprocal()).round_().add_(zero_point).clamp_(qmin, qmax)


def dequantize(integers: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """Return ``scale * (integers - zero_point)`` in the dtype of ``scale``."""
    return (integers.to(scale.dtype) - zero_point) * scale


class Rounding(NamedTuple):
    """What :func:`apply_rounding` rounds to.

    ``zero_point`` None stands for 0. ``limits``, where they are known as numbers and the zero point
    is 0, are ``(qmin - 1/2) scale`` and ``(qmax + 1/2) scale``. What ``never_clips`` has the
    identity as its gradient.
    """

    scale: Tensor
    inverse: Tensor
    zero_point: Tensor | None
    qmin: float
    qmax: float
    never_clips: bool = False
    limits: tuple[float, float] | None = None


def fake_quantize(
    tensor: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    qmin: int,
    qmax: int,
    *,
    never_clips: bool = False,
) -> Tensor:
    """Return ``tensor`` rounded to the grid of ``scale`` and ``zero_point``.

    The gradient is the straight-through estimator: that of the output where the integer lies
    within [qmin, qmax] before clamping, 0 where it was clipped.

    Args:
        tensor: any shape, floating; computed with in float32 or wider and returned in its own
            dtype. Infinity clips, NaN stays NaN. Unchanged.
        scale: broadcasts against ``tensor``; float32 or wider; no gradient flows to it.
        zero_point: likewise, whole numbers; None stands for 0 and saves two passes.
        qmin: smallest integer.
        qmax: largest integer.
        never_clips: the range covers the tensor (a weight quantized over its own extremes): the
            gradient is then the identity, and nothing is kept for backward.
    """
    to = Rounding(scale, scale.reciprocal(), zero_point, qmin, qmax, never_clips)
    if never_clips and is_small(tensor):
        # The gradient of a clone is the identity; its values are rounded beneath it.
        result = tensor.clone()
        _round(result.detach().mul_(to.inverse), to)
        return result
    return apply_rounding(tensor, to)


def is_small(tensor: Tensor) -> bool:
    """Return whether calling into Python in backward costs more than one more pass over memory.

    Only of a tensor that is computed with in its own dtype, and in eager mode.
    """
    small = tensor.numel() <= SMALL and tensor.dtype in _WIDE
    return small and not torch.compiler.is_compiling()


def _round(position: Tensor, to: Rounding) -> Tensor:
    """Return ``position``, counted in steps, as the value of the nearest integer, in place."""
    position.round_()
    if to.zero_point is None:
        return position.clamp_(to.qmin, to.qmax).mul_(to.scale)
    position.add_(to.zero_point).clamp_(to.qmin, to.qmax).sub_(to.zero_point)
    return position.mul_(to.scale)


class _FakeQuantize(torch.autograd.Function):
    """In place on one fresh tensor: the cost is memory traffic, not arithmetic.

    For backward the tensor itself is kept, which mostly is alive anyway; one kernel then makes the
    gradient of it, which is twice as fast as making and multiplying a mask of bytes.
    """

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, to: Rounding) -> Tensor:
        ctx.to = None
        if not to.never_clips:
            ctx.save_for_backward(tensor)
            # A buffer may have followed the next batch before this one's backward.
            ctx.to = to if to.zero_point is None else to._replace(zero_point=to.zero_point.clone())
        return _round(wide(tensor).mul(to.inverse), to).to(tensor.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        grad = grads[0]
        if ctx.to is None:
            return grad, None
        (tensor,) = ctx.saved_tensors
        _, inverse, zero_point, qmin, qmax, _, bounds = ctx.to
        position = wide(tensor)
        if bounds is None:
            position = position * inverse
            position = position if zero_point is None else position.add_(zero_point)
            bounds = qmin - 0.5, qmax + 0.5
        # The gradient of clamp, as one kernel: grad where it is strictly between the bounds.
        result = torch.ops.aten.hardtanh_backward(grad.to(position.dtype), position, *bounds)
        return result.to(grad.dtype), None


apply_rounding: Callable[[Tensor, Rounding], Tensor] = _FakeQuantize.apply
