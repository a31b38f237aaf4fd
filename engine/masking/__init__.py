"""Masks as the engine holds them: checked, computed into a weight, equal in all processes."""

from engine.masking.asked import fraction, in_config
from engine.masking.checked import checked_masks
from engine.masking.held import MASKED_BY, MaskedWeight, agree_between_processes, hold, let_go
from engine.masking.removed import RemovedWeights
from engine.masking.round import calculated, put_in_place
from engine.masking.tied import tied_layers

__all__ = [
    "MASKED_BY",
    "MaskedWeight",
    "RemovedWeights",
    "agree_between_processes",
    "calculated",
    "checked_masks",
    "fraction",
    "hold",
    "in_config",
    "let_go",
    "put_in_place",
    "tied_layers",
]
