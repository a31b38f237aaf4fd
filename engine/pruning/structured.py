"""Base of the algorithms that remove whole filters: they say how much each filter matters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from engine.attach.selection import FILTER_TYPES
from engine.attach.wrapper import Wrapper
from engine.plugins.stack import placeholder
from engine.pruning.channels import Channels
from engine.pruning.masks import prune_count, smallest_removed
from engine.pruning.pruner import Pruner


class FilterPruner(Pruner):
    """Removes the ``int(filters * sparsity)`` filters of lowest importance, bias included.

    A subclass implements :meth:`filter_importance`. Filters that are removed already stay removed
    and count towards the asked fraction, so that a schedule's masks are nested.
    """

    one_shot = True
    default_op_types = FILTER_TYPES

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: What an extension has asked for in this round of masks already, by the wrapper's id.
        self.ranked: dict[int, Tensor] = {}

    def check_layer(self, module: nn.Module) -> str | None:
        """Refuse layers of which it is not known what their filters are."""
        try:
            Channels(module)
        except TypeError as error:
            return str(error)
        return None

    @placeholder
    def filter_importance(self, wrapper: Wrapper, channels: Channels) -> Tensor | None:
        """Return one score per filter, shape (filters,), larger is kept longer.

        None: statistics are still being collected; the mask is asked for again after the next
        step. Called under ``torch.no_grad()``.
        """
        raise NotImplementedError

    def calc_mask(self, wrapper: Wrapper, sparsity: float) -> dict[str, Tensor] | None:
        """Return the mask of whole filters; see ``HookSpecs.calc_mask``."""
        channels = Channels(wrapper.module)
        importance = self.ranked.pop(id(wrapper), None)
        if importance is None:
            importance = self.filter_importance(wrapper, channels)
        if importance is None:
            return None
        mask = wrapper.mask("weight")
        if mask is not None:
            removed = channels.left(mask).logical_not()
            importance = importance.masked_fill(removed, -torch.inf)
        kept = smallest_removed(importance, prune_count(channels.count, sparsity))
        masks = {"weight_mask": channels.spread(kept)}
        if wrapper.bias is not None:
            masks["bias_mask"] = kept.view_as(wrapper.bias)
        return masks
