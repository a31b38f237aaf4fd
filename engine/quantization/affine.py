"""Affine quantization, ``r = S (q - Z)``: Jacob et al. 2018, arXiv 1712.05877, section 2.1."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def affine_parameters(
    low: Tensor, high: Tensor, qmin: int, qmax: int, *, symmetric: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the scale and zero point that map [low, high] onto the integers [qmin, qmax].

    The range is widened to hold zero and nudged so that zero is an integer (eq. 1 and section
    3.1): S = (high - low) / (qmax - qmin), Z = round(qmin - low / S). Symmetric: Z = 0 (qmin must
    be negative) and S = max(-low, high) / qmax. A range of nothing but zero gives S = 1.

    Args:
        low: smallest value, any shape (one per channel, say), floating.
        high: largest value, same shape.
        qmin: smallest integer.
        qmax: largest integer, above ``qmin``.
        symmetric: whether the zero point is fixed at 0.

    Returns:
        scale, zero_point: of the shape and dtype of ``low``; the zero point is a whole number.

    Raises:
        ValueError: a range is NaN or infinite, or ``qmax <= qmin``.
    """
    if qmax <= qmin:
        raise ValueError(f"qmax must be above qmin, got [{qmin}, {qmax}]")
    low, high = low.clamp(max=0), high.clamp(min=0)
    if symmetric:
        scale = torch.maximum(-low, high) / qmax
    else:
        scale = (high - low) / (qmax - qmin)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    zero_point = torch.zeros_like(scale) if symmetric else (qmin - low / scale).round()
    return scale, zero_point.clamp(qmin, qmax)


def quantize(tensor: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int) -> Tensor:
    """Return ``clamp(round(tensor / scale) + zero_point, qmin, qmax)`` in ``tensor``'s dtype.

    Rounding is half to even. ``scale`` and ``zero_point`` broadcast against ``tensor``.
    """
    return (tensor / scale).round_().add_(zero_point).clamp_(qmin, qmax)


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

    The gradient is the straight-through estimator: that of the output where the value lies within
    [qmin, qmax] before clamping, 0 where it was clipped.

    Args:
        tensor: any shape, floating. Unchanged.
        scale: broadcasts against ``tensor``; no gradient flows to it.
        zero_point: likewise, whole numbers.
        qmin: smallest integer.
        qmax: largest integer.
        never_clips: the range covers the tensor (a weight quantized over its own extremes): the
            gradient is then the identity, and nothing is kept for backward.
    """
    return _FakeQuantize.apply(tensor, scale, zero_point, qmin, qmax, never_clips)


class _FakeQuantize(torch.autograd.Function):
    """In place on one fresh tensor: the cost is memory traffic, not arithmetic."""

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
        q = (tensor / scale).round_().add_(zero_point)
        ctx.clips = not never_clips
        if ctx.clips:
            ctx.save_for_backward((q >= qmin).logical_and_(q <= qmax))
        return q.clamp_(qmin, qmax).sub_(zero_point).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        grad = grads[0]
        if ctx.clips:
            (inside,) = ctx.saved_tensors
            grad = grad * inside
        return grad, None, None, None, None, None
