"""Masks as the engine holds them: checked, computed into a weight, equal in all processes."""

from engine.pruning.masking.asked import fraction, in_config
from engine.pruning.masking.checked import checked_masks, expanded_masks
from engine.pruning.masking.held import (
    MASKED_BY,
    MaskedWeight,
    agree_between_processes,
    hold,
    let_go,
)
from engine.pruning.masking.removed import RemovedWeights
from engine.pruning.masking.round import calculated, put_in_place
from engine.pruning.masking.tied import tied_layers

__all__ = [
    "MASKED_BY",
    "MaskedWeight",
    "RemovedWeights",
    "agree_between_processes",
    "calculated",
    "checked_masks",
    "expanded_masks",
    "fraction",
    "hold",
    "in_config",
    "let_go",
    "put_in_place",
    "tied_layers",
]
