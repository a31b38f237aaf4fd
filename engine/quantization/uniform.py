"""Uniform levels on the unit interval: Zhou et al. 2016 (DoReFa-Net), arXiv 1606.06160, eq. 5."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from engine.quantization.affine import wide


class _StraightThrough(torch.autograd.Function):
    """Forward: the quantized value. Backward: the gradient as it is. Saves nothing."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, quantized: Tensor) -> Tensor:
        return quantized

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


def straight_through(tensor: Tensor, quantized: Tensor) -> Tensor:
    """Return ``quantized``, bit for bit; its gradient passes to ``tensor`` unchanged."""
    apply: Callable[..., Tensor] = _StraightThrough.apply
    return apply(tensor, quantized.detach())


class _QuantizeClipped(torch.autograd.Function):
    """The gradient's mask is written out: that of ``clamp`` at a bound is another in each torch."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, bits: int) -> Tensor:
        ctx.save_for_backward(tensor)
        return _nearest_level(tensor.clamp(0, 1), bits)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (tensor,) = ctx.saved_tensors
        return grads[0].where((tensor >= 0) & (tensor <= 1), 0), None


def quantize_unit(tensor: Tensor, bits: int) -> Tensor:
    """Return ``round((2^k - 1) r) / (2^k - 1)``, k = ``bits``, for r in [0, 1] (eq. 5).

    Rounding is half to even; the gradient passes unchanged (eq. 6). Any shape and floating dtype,
    computed in float32 or wider and returned in the tensor's own; ``bits`` at least 1.
    """
    return straight_through(tensor, _nearest_level(tensor.detach(), bits))


def quantize_clipped(tensor: Tensor, bits: int) -> Tensor:
    """Return :func:`quantize_unit` of ``clip(r, 0, 1)``, for any r (section 2.4).

    The gradient passes unchanged for r in [0, 1], both ends included, as the paper's estimator has
    it (eq. 6), and is 0 elsewhere and of NaN. The ends matter: behind a ReLU half of all is 0.
    """
    apply: Callable[..., Tensor] = _QuantizeClipped.apply
    return apply(tensor, bits)


def _nearest_level(tensor: Tensor, bits: int) -> Tensor:
    levels: int = 2**bits - 1
    return (wide(tensor) * levels).round_().div_(levels).to(tensor.dtype)
