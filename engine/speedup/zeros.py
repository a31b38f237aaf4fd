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


#: Elements whose magnitudes are taken at a time.
_CHUNK = 1 << 18


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
        self._batched: Tensor | None = None
        self._outputs = outputs
        self._inputs = inputs

    def outputs(self, inputs: Tensor) -> Tensor:
        """Return which outputs depend on any of ``inputs``, from bool (..., inputs)."""
        return self._meets(inputs, self._outputs, "outputs")

    def inputs(self, outputs: Tensor) -> Tensor:
        """Return which inputs any of ``outputs`` depends on, from bool (..., outputs)."""
        return self._meets(outputs, self._inputs, "inputs")

    def _meets(self, those: Tensor, count: int, what: str) -> Tensor:
        some = those.any(dim=-1, keepdim=True)
        if self._weights is None or not bool(some.any()):
            return some.expand(*those.shape[:-1], count)
        wanted = those.to(self._weights.device)
        if self._weights.dim() > 2:
            if self._batched is None:
                self._batched = _sizes(self._weights)
            sizes = self._batched
            found = (sizes.mT if what == "inputs" else sizes) @ wanted.unsqueeze(-1).to(sizes.dtype)
            return (found.squeeze(-1) != 0).cpu()
        # Some rows at a time: magnitudes of all of a large weight would leave the cache.
        rows = self._weights.split(max(1, _CHUNK // self._inputs))
        if what == "outputs":
            magnitudes = map(_sizes, rows)
            return torch.cat([m @ wanted.to(m.dtype) != 0 for m in magnitudes]).cpu()
        reached = torch.zeros(count, dtype=torch.bool, device=wanted.device)
        for part, these in zip(map(_sizes, rows), wanted.split(rows[0].shape[0]), strict=True):
            reached |= these.to(part.dtype) @ part != 0
        return reached.cpu()


def _sizes(weights: Tensor) -> Tensor:
    """Return magnitudes that can be summed up."""
    if weights.dtype in (torch.float32, torch.float64):
        return weights.abs()
    return (weights if weights.dtype == torch.bool else weights.abs()).float()
