"""Masks as the engine holds them: checked, computed into a weight, equal in all processes."""

from engine.pruning.masking.asked import fraction, in_config
from engine.pruning.masking.checked import checked_masks, expanded_masks
from engine.pruning.masking.gradients import MaskedGradients
from engine.pruning.masking.held import (
    MASKED_BY,
    MaskedWeight,
    agree_between_processes,
    hold,
    let_go,
)
from engine.pruning.masking.in_place import MasksInPlace
from engine.pruning.masking.one_shot import calibrated
from engine.pruning.masking.round import Asked, NewMasks, calculated, put_in_place
from engine.pruning.masking.tied import tied_layers

__all__ = [
    "MASKED_BY",
    "Asked",
    "MaskedGradients",
    "MaskedWeight",
    "MasksInPlace",
    "NewMasks",
    "agree_between_processes",
    "calculated",
    "calibrated",
    "checked_masks",
    "expanded_masks",
    "fraction",
    "hold",
    "in_config",
    "let_go",
    "put_in_place",
    "tied_layers",
]
