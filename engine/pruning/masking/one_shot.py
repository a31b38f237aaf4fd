"""Masks and weights of one-shot algorithms: layer by layer, each behind what became of the last."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from engine.attach.wrapper import Wrapper
from engine.calibration import Calibrated, walk
from engine.calibration.result import checked_result, tell
from engine.pruning.masking.asked import in_config
from engine.pruning.masking.checked import checked_masks
from engine.pruning.masking.held import agree_between_processes
from engine.pruning.masking.round import Asked, NewMasks

if TYPE_CHECKING:
    from engine.attach.compressor import Compressor


def calibrated(
    calibrate: Callable[..., Any],
    compressor: Compressor,
    provider: object,
    asked: Sequence[Asked],
    data: Calibrated,
) -> list[NewMasks]:
    """Return the new masks of layers that an algorithm answered ``calibrate_layer`` for.

    Weights are changed and masks lie on them when it returns. A layer that is asked for a sparsity
    of 0 is left alone.

    Args:
        calibrate: the stack's ``calibrate_layer``.
        compressor: what the algorithm is attached to a model by.
        provider: the algorithm, for messages.
        asked: what is asked of which layer.
        data: the batches.

    Raises:
        PluginError: the algorithm failed, or returned something else than a LayerResult, or one
            that does not fit the layer; weights and masks are as they were.
    """
    of_layer = {id(wrapper): each for each in asked for wrapper in [each[1]] if each[2] > 0}
    fresh: list[NewMasks] = []
    before: list[tuple[Tensor, Tensor | None]] = []
    old_masks: list[tuple[Wrapper, Tensor | None]] = []
    if not of_layer:
        return fresh
    wrappers = [wrapper for _, wrapper, _ in asked if id(wrapper) in of_layer]
    layers = walk(compressor.bound_model, wrappers, data)
    try:
        for wrapper, inputs in layers:
            target = of_layer[id(wrapper)][2]
            with in_config([of_layer[id(wrapper)]]):
                result = calibrate(wrapper, inputs, target)
            if result is None:
                continue
            result = checked_result(result, wrapper, provider, ("mask", "weight"))
            compressor.calibration_notes[wrapper.name] = result.note
            weight = wrapper.weight
            value = weight.detach() if result.weight is None else result.weight
            value, masks = value.to(weight), {}
            if result.mask is not None:
                masks = checked_masks({"weight_mask": result.mask}, wrapper, provider)
                if not wrapper.straight_through:
                    value = value * masks["weight_mask"]
            agree_between_processes([{"weight": value, **masks}])
            log = compressor.host._changes
            # What the log keeps is what the weight was, unless it knows of an earlier round.
            own = None if log.before(weight) is None else weight.detach().clone()
            compressor.change(weight, value)
            before.append((weight, log.before(weight) if own is None else own))
            if masks:
                fresh.append(NewMasks(wrapper, target, masks))
                old_masks.append((wrapper, _unless_ones(wrapper.weight_mask)))
                wrapper.register_buffer("weight_mask", masks["weight_mask"])
    except BaseException:
        layers.close()
        for wrapper, mask in old_masks:
            ones = torch.ones_like(wrapper.weight.detach()) if mask is None else mask
            wrapper.register_buffer("weight_mask", ones)
        for tensor, old in reversed(before):
            if old is not None:
                compressor.change(tensor, old)
        raise
    tell(provider, compressor.calibration_notes)
    return fresh


def _unless_ones(mask: Tensor | None) -> Tensor | None:
    """Return a mask to go back to; nothing for the one that every layer begins with."""
    return None if mask is None or bool(mask.all()) else mask
