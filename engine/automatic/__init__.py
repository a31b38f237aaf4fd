"""What pruners are built from that search each layer's sparsity: trials, costs, progress."""

from engine.automatic.admm import ADMMSearch, AlternatingDirections
from engine.automatic.annealing import anneal
from engine.automatic.cost import Cost, Unit
from engine.automatic.fitting import fit
from engine.automatic.journal import Trial
from engine.automatic.pruner import AutomaticPruner, Plan
from engine.automatic.snapshot import Attempt

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
