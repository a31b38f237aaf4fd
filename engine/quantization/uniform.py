"""Uniform levels on the unit interval: Zhou et al. 2016 (DoReFa-Net), arXiv 1606.06160, eq. 5."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return tensor.round()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


def round_straight_through(tensor: Tensor) -> Tensor:
    """Return ``tensor`` rounded half to even; its gradient passes unchanged."""
    result: Tensor = _Round.apply(tensor)
    return result


def quantize_unit(tensor: Tensor, bits: int) -> Tensor:
    """Return ``round((2^k - 1) r) / (2^k - 1)``, k = ``bits``, for r in [0, 1] (eq. 5).

    The gradient passes unchanged (eq. 6). Any shape and floating dtype; ``bits`` at least 1.
    """
    levels = 2**bits - 1
    return round_straight_through(tensor * levels) / levels
