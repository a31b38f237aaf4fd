"""Weights and grids of one-shot quantizers: layer by layer, behind what became of the last."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any

from engine.attach.computed import Stage, without_stage
from engine.attach.wrapper import Wrapper
from engine.calibration import Calibrated, LayerResult, walk
from engine.calibration.result import checked_result, result_fault, tell
from engine.pruning.masking import agree_between_processes

if TYPE_CHECKING:
    from engine.attach.compressor import Compressor

_ALLOWED = ("weight", "grid")


def quantize_layers(
    calibrate: Callable[..., Any], quantizer: Compressor, provider: object, data: Calibrated
) -> None:
    """Ask for each layer's weight and grid, in the order in which layers run.

    Layers whose grid stands already, as of a state that was loaded, are left alone. Those that the
    algorithm answers None for are rounded to the grid over their extremes, as ever.

    Args:
        calibrate: the stack's ``calibrate_layer``.
        quantizer: what the algorithm is attached to a model by.
        provider: the algorithm, for messages.
        data: the batches.

    Raises:
        PluginError: the algorithm failed, or returned something else than a LayerResult, or one
            that does not fit the layer.
    """
    todo = [w for w in quantizer.wrappers if "weight" in w.grids and not _stands(w)]
    if not todo:
        return
    # Until it is a layer's turn it is as it was; afterwards its parameter is on its grid.
    with ExitStack() as dense:
        own = {id(wrapper): dense.enter_context(ExitStack()) for wrapper in todo}
        for wrapper in todo:
            own[id(wrapper)].enter_context(without_stage(wrapper.module, Stage.QUANTIZE))
        layers = dense.enter_context(closing(walk(quantizer.bound_model, todo, data)))
        for wrapper, inputs in layers:
            if _stands(wrapper):  # it shares its weight with one that was done
                continue
            result = calibrate(wrapper, inputs, None)
            if result is None:
                own[id(wrapper)].close()
                continue
            result = checked_result(result, wrapper, provider, _ALLOWED)
            quantizer.calibration_notes[wrapper.name] = result.note
            _put(result, wrapper, quantizer, provider, todo)
    tell(provider, quantizer.calibration_notes)


def _stands(wrapper: Wrapper) -> bool:
    return bool(wrapper.grids["weight"].fixed)


def _put(
    result: LayerResult,
    wrapper: Wrapper,
    quantizer: Compressor,
    provider: object,
    wrappers: list[Wrapper],
) -> None:
    weight = wrapper.weight
    if result.weight is not None:
        value = result.weight.to(weight)
        agree_between_processes([{"weight": value}])
        quantizer.change(weight, value)
    if result.grid is None:
        return
    for other in wrappers:
        if other.weight is weight:
            try:
                other.grids["weight"].fix(*result.grid)
            except ValueError as error:
                message = f"returned a grid that is none: {error}"
                raise result_fault(message, wrapper, provider, _ALLOWED) from error
