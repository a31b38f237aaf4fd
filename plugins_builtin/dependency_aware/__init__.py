"""Layers that are bound together lose the same filters.

Filters whose outputs are added, gated or convolved in groups can only be removed together. They
are ranked by the sum of what the pruner says of each of them.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from engine.pruning import GroupConstraint, Ranking


class DependencyAware(GroupConstraint):
    """Ranks the filters of bound layers over the group, so that speedup can remove all of them."""

    name = "dependency_aware"

    def decide(self, rankings: Sequence[Sequence[Ranking]]) -> list[Tensor]:
        """Return, by group, the channels that stay: no layer loses more than its own mask would."""
        return [
            group.choose(
                group.scores([each.importance for each in ranking]),
                [each.removed for each in ranking],
                self.round_to,
            )
            for group, ranking in zip(self.groups, rankings, strict=True)
        ]
