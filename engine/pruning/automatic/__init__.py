"""What pruners are built from that search each layer's sparsity: trials, costs, progress."""

from engine.pruning.automatic.admm import ADMMSearch, AlternatingDirections
from engine.pruning.automatic.annealing import anneal
from engine.pruning.automatic.cost import Cost, Unit
from engine.pruning.automatic.fitting import fit
from engine.pruning.automatic.journal import Trial
from engine.pruning.automatic.planned import Plan
from engine.pruning.automatic.pruner import AutomaticPruner
from engine.pruning.automatic.snapshot import Attempt

__all__ = [
    "ADMMSearch",
    "AlternatingDirections",
    "Attempt",
    "AutomaticPruner",
    "Cost",
    "Plan",
    "Trial",
    "Unit",
    "anneal",
    "fit",
]
