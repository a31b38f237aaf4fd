"""What searches for sparsities are built from; the public name of ``engine.pruning.automatic``."""

from engine.pruning.automatic import (
    ADMMSearch,
    AlternatingDirections,
    Attempt,
    AutomaticPruner,
    Cost,
    Plan,
    Trial,
    Unit,
    anneal,
    fit,
)

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
