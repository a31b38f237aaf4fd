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


def quantize_unit(tensor: Tensor, bits: int) -> Tensor:
    """Return ``round((2^k - 1) r) / (2^k - 1)``, k = ``bits``, for r in [0, 1] (eq. 5).

    Rounding is half to even; the gradient passes unchanged (eq. 6). Any shape and floating dtype,
    computed in float32 or wider and returned in the tensor's own; ``bits`` at least 1.
    """
    levels = 2**bits - 1
    rounded = (wide(tensor.detach()) * levels).round_().div_(levels)
    return straight_through(tensor, rounded.to(tensor.dtype))
