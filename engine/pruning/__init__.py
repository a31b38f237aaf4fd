"""What pruning algorithms are built from: exact masks, and what a "filter" of each layer is."""

from engine.pruning.channels import Channels
from engine.pruning.masks import prune_count, smallest_removed, wide
from engine.pruning.statistics import ActivationFilterPruner, StatisticsFilterPruner
from engine.pruning.structured import FilterPruner

__all__ = [
    "ActivationFilterPruner",
    "Channels",
    "FilterPruner",
    "StatisticsFilterPruner",
    "prune_count",
    "smallest_removed",
    "wide",
]
