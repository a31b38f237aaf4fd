"""Affine quantization, ``r = S (q - Z)``: Jacob et al. 2018, arXiv 1712.05877, section 2.1."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


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
    low, high = wide(low).clamp(max=0), wide(high).clamp(min=0)
    scale = torch.maximum(-low, high) / qmax if symmetric else (high - low) / (qmax - qmin)
    usable = (scale > 0) & (scale < torch.inf)
    scale = scale.where(usable, 1.0)
    if symmetric:
        return scale, torch.zeros_like(scale)
    zero_point = (qmin - low / scale).round_().where(usable, 0.0)
    return scale, zero_point.clamp_(qmin, qmax)


def wide(tensor: Tensor) -> Tensor:
    """Return ``tensor`` in the dtype that quantization computes in: at least float32."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def quantize(tensor: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int) -> Tensor:
    """Return ``clamp(round(tensor / scale) + zero_point, qmin, qmax)``, whole numbers.

    Rounding is half to even; infinity clips, NaN stays NaN. ``scale`` and ``zero_point`` broadcast
    against ``tensor``; the result has the dtype of :func:`wide`.
    """
    return _nearest(tensor, scale, zero_point).clamp_(qmin, qmax)


def dequantize(integers: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """Return ``scale * (integers - zero_point)`` in the dtype of ``scale``."""
    return (integers.to(scale.dtype) - zero_point) * scale


def fake_quantize(
    tensor: Tensor,
    scale: Tensor,
    zero_point: Tensor,
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
        zero_point: likewise, whole numbers.
        qmin: smallest integer.
        qmax: largest integer.
        never_clips: the range covers the tensor (a weight quantized over its own extremes): the
            gradient is then the identity, and nothing is kept for backward.
    """
    apply: Callable[..., Tensor] = _FakeQuantize.apply
    return apply(tensor, scale, zero_point, qmin, qmax, never_clips)


def _nearest(tensor: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    return (wide(tensor) / scale).round_().add_(zero_point)


class _FakeQuantize(torch.autograd.Function):
    """In place on one fresh tensor: the cost is memory traffic, not arithmetic.

    Where values may clip, the integers are kept for backward, four bytes per value: one kernel
    makes the gradient of them, which is twice as fast as making and multiplying a mask of bytes.
    """

    @staticmethod
    def forward(
        ctx: Any,
        tensor: Tensor,
        scale: Tensor,
        zero_point: Tensor,
        qmin: int,
        qmax: int,
        never_clips: bool,
    ) -> Tensor:
        q = _nearest(tensor, scale, zero_point)
        ctx.bounds = None if never_clips else (qmin - 0.5, qmax + 0.5)
        if never_clips:
            q.clamp_(qmin, qmax)
        else:
            ctx.save_for_backward(q)
            q = q.clamp(qmin, qmax)
        return q.sub_(zero_point).mul_(scale).to(tensor.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        grad = grads[0]
        if ctx.bounds is not None:
            (q,) = ctx.saved_tensors
            # The gradient of clamp, as one kernel: grad where q is strictly between the bounds.
            grad = torch.ops.aten.hardtanh_backward(grad.to(q.dtype), q, *ctx.bounds)
            grad = grad.to(grads[0].dtype)
        return grad, None, None, None, None, None
