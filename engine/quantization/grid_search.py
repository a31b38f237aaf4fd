"""A grid that clips: the range of least squared error, not of all values."""

from __future__ import annotations

import torch
from torch import Tensor

from engine.quantization.grid import Grid

#: What the range over all values is multiplied with, the widest first.
_SHRINKS = tuple(1 - 0.03 * step for step in range(14))


@torch.no_grad()
def best_grid(
    grid: Grid, weight: Tensor, importance: Tensor | None = None, *, clip: bool = True
) -> tuple[Tensor, Tensor]:
    """Return scale and zero point with the least squared error of rounding to nearest.

    Each scale has a range of its own among fourteen, from that of all its values to three fifths
    of it.

    Args:
        grid: of the weight; it is not changed. :meth:`Grid.fix` makes it stand.
        weight: in the layer's own shape.
        importance: what a squared error counts, broadcasts to ``weight``: the mean square of what
            each element is multiplied with. All count alike without it.
        clip: False: the range over all values.

    Returns:
        As :meth:`Scheme.parameters`, float32.
    """
    scheme = grid.scheme
    arranged = scheme.arranged(weight.detach().float())
    low, high = scheme.extremes(arranged)
    best, zero_point = scheme.parameters(low, high)
    zero_point = zero_point.expand(best.shape)
    if not clip:
        return best, zero_point
    counts = None
    if importance is not None:
        counts = scheme.arranged(importance.float().expand(weight.shape))
    least = _errors(arranged, best, zero_point, counts, grid)
    for shrink in _SHRINKS[1:]:
        scale, zero = scheme.parameters(low * shrink, high * shrink)
        zero = zero.expand(scale.shape)
        errors = _errors(arranged, scale, zero, counts, grid)
        better = errors < least
        least = errors.where(better, least)
        best, zero_point = scale.where(better, best), zero.where(better, zero_point)
    return best, zero_point


def _errors(
    arranged: Tensor, scale: Tensor, zero_point: Tensor, counts: Tensor | None, grid: Grid
) -> Tensor:
    scheme = grid.scheme
    q = (arranged / scale).round_().add_(zero_point).clamp_(scheme.qmin, scheme.qmax)
    error = q.sub_(zero_point).mul_(scale).sub_(arranged).square_()
    if counts is not None:
        error.mul_(counts)
    dims = [dim for dim, size in enumerate(scale.shape) if size == 1] or list(range(error.dim()))
    return error.sum(dims, keepdim=True).view(scale.shape) if scale.dim() else error.sum()
