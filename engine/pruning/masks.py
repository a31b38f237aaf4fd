"""Masks that remove exactly as much as was asked."""

from __future__ import annotations

import torch
from torch import Tensor

#: So many scores are put in order together, where each row has its own.
_AT_ONCE = 1 << 22


def prune_count(total: int, sparsity: float) -> int:
    """Return how many of ``total`` elements a fraction ``sparsity`` removes.

    That is ``floor(total * sparsity)``, robust against binary fractions: 0.29 of 100 is 29, though
    ``100 * 0.29`` is 28.999999999999996 in floating point.

    Args:
        total: number of elements, at least 0.
        sparsity: fraction in [0, 1].
    """
    return min(total, int(total * sparsity + 1e-6))


def smallest_removed(scores: Tensor, count: int) -> Tensor:
    """Return a mask that is False for exactly ``count`` smallest scores, True elsewhere.

    One selection (``torch.kthvalue``, linear time) and one comparison; a second look only when
    scores are tied at the threshold. Of tied scores those with the lowest index are removed. NaN
    ranks above everything: a diverged weight is kept, not hidden. Nothing flows back.

    Args:
        scores: any shape, any floating dtype; half precision is ranked in float32. Unchanged.
        count: in [0, scores.numel()].

    Returns:
        bool tensor, same shape and device as ``scores``.

    Raises:
        ValueError: ``count`` is out of range.
    """
    scores = scores.detach().contiguous()
    total = scores.numel()
    if not 0 <= count <= total:
        raise ValueError(f"count must be in [0, {total}], got {count}")
    if count == 0:
        return torch.ones_like(scores, dtype=torch.bool)
    if count == total:
        return torch.zeros_like(scores, dtype=torch.bool)
    scores = wide(scores)
    threshold = scores.flatten().kthvalue(count).values
    if torch.isnan(threshold):
        return _by_order(scores, count)
    kept = (scores <= threshold).logical_not_()
    surplus = count - (total - int(torch.count_nonzero(kept)))
    if surplus < 0:
        tied = (scores.flatten() == threshold).nonzero().flatten()
        kept.view(-1)[tied[surplus:]] = True
    return kept


def smallest_in_rows(scores: Tensor, count: int) -> Tensor:
    """Return a mask that is False for ``count`` scores, the smallest of each row.

    Each row loses as many, or one more where ``count`` is no multiple of the rows: those whose next
    score is smallest. Of tied scores those with the lowest index are removed; NaN ranks above
    everything.

    Args:
        scores: (..., columns), any floating dtype.
        count: in [0, scores.numel()].

    Returns:
        bool tensor, same shape and device as ``scores``.
    """
    rows = scores.detach().reshape(-1, scores.shape[-1])
    each, more = divmod(count, max(len(rows), 1))
    mask = torch.ones_like(rows, dtype=torch.bool)
    following, next_scores = [], []
    # An order takes eight bytes a score: not all at once.
    step = max(_AT_ONCE // max(rows.shape[1], 1), 1)
    for some, own in zip(rows.split(step), mask.split(step), strict=True):
        order = wide(some).argsort(dim=-1, stable=True)
        own.scatter_(-1, order[:, :each], False)
        if more:
            following.append(order[:, each].clone())
            next_scores.append(wide(some).gather(1, order[:, each : each + 1]).flatten())
    if more:
        chosen = torch.cat(next_scores).argsort(stable=True)[:more]
        mask[chosen, torch.cat(following)[chosen]] = False
    return mask.view(scores.shape)


def wide(tensor: Tensor) -> Tensor:
    """Return ``tensor`` in float32 where it is half precision, else itself."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _by_order(scores: Tensor, count: int) -> Tensor:
    """Slow path for scores of which more than ``numel - count`` are NaN."""
    kept = torch.ones(scores.numel(), dtype=torch.bool, device=scores.device)
    order = torch.argsort(scores.flatten(), stable=True)
    kept[order[:count]] = False
    return kept.view(scores.shape)
