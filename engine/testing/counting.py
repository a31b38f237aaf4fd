"""What masks remove, counted in what the pruner removes: whole filters or single weights."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from engine.attach.compressor import Compressor
from engine.attach.wrapper import Wrapper
from engine.pruning.channels import Channels
from engine.testing.outcome import require


class Removed(NamedTuple):
    """Units that are removed of those that there are, over ``layers`` layers."""

    units: int
    total: int
    layers: int

    def is_about(self, sparsity: float) -> bool:
        """Whether this is the fraction ``sparsity``, a unit of each layer up or down."""
        return abs(self.units - sparsity * self.total) <= self.layers

    def __str__(self) -> str:
        return f"{self.units} of {self.total}"


def weight_masks(compressor: Compressor) -> dict[str, Tensor]:
    """Return the weight mask of each layer; a layer without one fails the check."""
    masks = {}
    for wrapper in compressor.get_modules_wrapper():
        mask = wrapper.mask("weight")
        require(
            mask is not None and wrapper.sparsity is not None,
            f'layer "{wrapper.name}" ({wrapper.type}) has no mask after the whole training',
        )
        assert mask is not None
        masks[wrapper.name] = mask
    return masks


def removes_filters(compressor: Compressor) -> bool:
    """Return whether the masks remove whole filters only, in all layers."""
    return all(_by_filter(wrapper) is not None for wrapper in compressor.get_modules_wrapper())


def removed(compressor: Compressor) -> Removed:
    """Return how much the weight masks remove: filters where they are whole, else weights."""
    weight_masks(compressor)
    wrappers = _owners(compressor)
    whole = removes_filters(compressor)
    masks = [_by_filter(wrapper) if whole else wrapper.mask("weight") for wrapper in wrappers]
    count = sum(int((mask == 0).sum()) for mask in masks if mask is not None)
    total = sum(mask.numel() for mask in masks if mask is not None)
    return Removed(count, total, len(wrappers))


def _owners(compressor: Compressor) -> list[Wrapper]:
    """Return one wrapper for each weight: layers may share one."""
    return list({id(w.weight): w for w in compressor.get_modules_wrapper()}.values())


def _by_filter(wrapper: Wrapper) -> Tensor | None:
    """Return one number per filter, 0 where it is removed; None where masks cut through filters."""
    mask = wrapper.mask("weight")
    assert mask is not None
    try:
        rows = Channels(wrapper.module).rows(mask)
    except TypeError:
        return None
    first = rows[:, :1]
    return first.flatten() if bool(torch.eq(rows, first).all()) else None
