"""N:M patterns: of each M consecutive weights of a row, at most N are not zero."""

from __future__ import annotations

import torch
from torch import Tensor


def n_m_mask(scores: Tensor, removed: int, of: int) -> Tensor:
    """Return a mask that is False for the ``removed`` smallest scores of each ``of`` in a row.

    A last piece of fewer than ``of`` loses as many of its own as is its share, rounded down. Of
    tied scores the first are removed.

    Args:
        scores: (..., columns), floating.
        removed: M - N, from 0 to ``of``.
        of: M.

    Returns:
        bool tensor of the shape of ``scores``.
    """
    columns = scores.shape[-1]
    whole = columns - columns % of
    mask = torch.ones_like(scores, dtype=torch.bool)
    pieces = [(scores[..., :whole].unflatten(-1, (-1, of)), removed)] if whole else []
    parts = [_smallest_gone(piece, count).flatten(-2) for piece, count in pieces]
    rest = scores[..., whole:]
    if rest.shape[-1]:
        parts.append(_smallest_gone(rest, rest.shape[-1] * removed // of))
    return torch.cat(parts, -1) if parts else mask


def pattern_of(text: str | None) -> tuple[int, int] | None:
    """Return how many weights go of how many, for "2:4" 2 of 4; None for no pattern."""
    if text is None:
        return None
    kept, _, of = text.partition(":")
    return int(of) - int(kept), int(of)


def _smallest_gone(scores: Tensor, count: int) -> Tensor:
    order = scores.argsort(dim=-1, stable=True)[..., :count]
    return torch.ones_like(scores, dtype=torch.bool).scatter_(-1, order, False)
