"""Where tensors are zero: which slices, and what a weight's other elements connect.

Sums and products of magnitudes say it, not tables of truth values, which PyTorch reduces slowly. A
sum of magnitudes is zero if and only if each of them is, and what is not a number is not zero.
"""

from __future__ import annotations

import torch
from torch import Tensor

from engine.speedup.tracked import Tracked


def is_zero(tensor: Tensor, dim: int) -> Tensor:
    """Return which slices of ``dim`` hold nothing but zeros, bool (size,) on the CPU."""
    tensor = tensor.detach()
    others = [d for d in range(tensor.dim()) if d != dim % tensor.dim()]
    if not others:
        return (tensor == 0).cpu()
    if not tensor.numel() or tensor.is_complex():
        return (tensor == 0).movedim(dim, 0).flatten(1).all(dim=1).cpu()
    return ((tensor.amax(others) == 0) & (tensor.amin(others) == 0)).cpu()


def zero_slices(tensor: Tensor, tracked: Tracked, dim: int) -> Tensor:
    """Return which slices of ``dim`` are zero whatever the input is, bool (size,).

    Of a parameter that is yet to be masked, none is.
    """
    dead = tracked.flags(dim)
    if not bool(dead.any()):
        return dead
    if tracked.is_unmasked:
        return torch.zeros_like(dead)
    return dead & is_zero(tensor, dim)


def uniform(x: Tensor, dim: int, dead: Tensor) -> Tensor:
    """Return the value of each constant channel, NaN where it differs between positions."""
    flat = x.detach().movedim(dim, 0).reshape(x.shape[dim], -1).double().cpu()
    alike = dead & (flat == flat[:, :1]).all(dim=1)
    return torch.where(alike, flat[:, 0], torch.nan)


class Reach:
    """Which outputs of a product depend on which inputs: those with a weight that is not zero.

    Args:
        weights: (..., outputs, inputs), of which only counts what is not zero; None where all of
            it is taken for not zero.
        outputs: how many there are.
        inputs: how many there are.
    """

    def __init__(self, weights: Tensor | None, outputs: int, inputs: int) -> None:
        self._weights = weights
        self._outputs = outputs
        self._inputs = inputs

    def outputs(self, inputs: Tensor) -> Tensor:
        """Return which outputs depend on any of ``inputs``, from bool (..., inputs)."""
        return _meets(self._weights, inputs, self._outputs)

    def inputs(self, outputs: Tensor) -> Tensor:
        """Return which inputs any of ``outputs`` depends on, from bool (..., outputs)."""
        weights = None if self._weights is None else self._weights.mT
        return _meets(weights, outputs, self._inputs)


def _meets(weights: Tensor | None, those: Tensor, count: int) -> Tensor:
    some = those.any(dim=-1, keepdim=True)
    if weights is None or not bool(some.any()):
        return some.expand(*those.shape[:-1], count)
    sizes = weights.abs() if weights.dtype != torch.bool else weights.to(torch.float32)
    if sizes.dtype not in (torch.float32, torch.float64):
        sizes = sizes.float()
    wanted = those.to(sizes.device, sizes.dtype)
    found = sizes @ wanted if sizes.dim() == 2 else (sizes @ wanted.unsqueeze(-1)).squeeze(-1)
    return (found != 0).cpu()
