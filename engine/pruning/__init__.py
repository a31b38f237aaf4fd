"""What pruning algorithms are built from: exact masks, and what a "filter" of each layer is."""

from engine.pruning.blocks import BlockPruner, repeated_blocks
from engine.pruning.bound import Group, bound_groups
from engine.pruning.budget import Budget
from engine.pruning.channels import Channels
from engine.pruning.constraint import GroupConstraint, Ranking
from engine.pruning.masks import prune_count, smallest_in_rows, smallest_removed, wide
from engine.pruning.patterned import PatternedPruner
from engine.pruning.reconstruction import Reconstruction, Refit
from engine.pruning.statistics import ActivationFilterPruner, StatisticsFilterPruner
from engine.pruning.structured import FilterPruner

__all__ = [
    "ActivationFilterPruner",
    "BlockPruner",
    "Budget",
    "Channels",
    "FilterPruner",
    "Group",
    "GroupConstraint",
    "PatternedPruner",
    "Ranking",
    "Reconstruction",
    "Refit",
    "StatisticsFilterPruner",
    "bound_groups",
    "prune_count",
    "repeated_blocks",
    "smallest_in_rows",
    "smallest_removed",
    "wide",
]
