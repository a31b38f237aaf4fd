"""Filters are ranked over the whole model, down to a budget of parameters or FLOPs.

The asked sparsity is then the fraction of the model's parameters or FLOPs that goes, and how many
filters each layer loses follows. Importance is compared between layers relative to the layer's
mean; a channel that is shared by several layers counts with the mean over them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.pruning import Budget, Group, GroupConstraint, Ranking


class GlobalRanking(GroupConstraint):
    """Removes the least important channels of all layers until the budget is met.

    Args:
        target: "parameters", "flops", or "filters".
        max_layer_sparsity: no layer loses a larger fraction of its filters.
        round_to: keep a multiple of this many filters in each layer, where that is possible.
    """

    name = "global_ranking"

    def __init__(
        self,
        target: str = "parameters",
        max_layer_sparsity: float = 0.9,
        round_to: int = 1,
        graph_module: bool = False,
    ) -> None:
        super().__init__(round_to, graph_module=graph_module)
        self.target = target
        self.max_layer_sparsity = max_layer_sparsity

    def decide(self, rankings: Sequence[Sequence[Ranking]]) -> list[Tensor]:
        """Return, by group, the channels that stay."""
        assert self.model is not None
        scores = []
        for group, ranking in zip(self.groups, rankings, strict=True):
            relative = [_relative(each.importance) for each in ranking]
            makers = (group.sizes > 0).sum(dim=0)
            scores.append(group.scores(relative) / makers)
        budget = Budget(self.model, self.target, *self.example)
        kept = budget.spend(self.groups, scores, self.asked(), self.max_layer_sparsity)
        return [
            group.choose(each.masked_fill(stays, torch.inf), _removed(group, stays), self.round_to)
            for group, each, stays in zip(self.groups, scores, kept, strict=True)
        ]


def _removed(group: Group, kept: Tensor) -> list[int]:
    return group.sizes[:, ~kept].sum(dim=1).tolist()


def _relative(importance: Tensor) -> Tensor:
    finite = importance[importance.isfinite()]
    mean = finite.double().mean() if len(finite) else torch.ones((), dtype=torch.float64)
    return importance.double() / mean.clamp(min=torch.finfo(torch.float64).tiny)
