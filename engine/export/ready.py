"""Whether a compressor has done what an export is to write: said before anything is written."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from engine.attach.unusable import refuse_unusable
from engine.errors import ExportError
from engine.plugins.stack import describe
from engine.quantization.quant_types import QuantType, quant_types_of

if TYPE_CHECKING:
    from engine.attach.compressor import Compressor
    from engine.pruning.pruner import Pruner
    from engine.quantization.quantizer import Quantizer

_NAMED = 8


def require_attached(compressor: Compressor) -> None:
    """Raise ExportError where ``compressor`` is not attached to the layers that the model has.

    Raises:
        ExportError: ``compress()`` was not called, or ``unwrap()`` was since; or layers were
            replaced, which are named.
        EngineError: parameters cannot be read (on the meta device, sharded).
    """
    what = "quantized" if compressor.kind == "quantization" else "pruned"
    if compressor._stack is None:
        raise ExportError(
            f"call compress() before a {what} model is exported: {describe(compressor)} is not "
            "attached to it\n  after unwrap() it is not either: export first"
        )
    layers = dict(compressor.bound_model.named_modules(remove_duplicate=False))
    gone = [w.name for w in compressor.wrappers if layers.get(w.name) is not w.module]
    if gone:
        raise ExportError(
            f"{_names(gone)} replaced since compress(): what {describe(compressor)} did is not in "
            "the model\n  replace layers before compress(), or unwrap() and make another compressor"
        )
    refuse_unusable(compressor.wrappers, describe(compressor))


def warn_without_masks(pruner: Pruner) -> None:
    """Warn of layers that are to lose something and have no mask yet."""
    waiting = [
        wrapper.name
        for wrapper in pruner.wrappers
        if pruner.asked.get(id(wrapper), 0.0) > 0 and wrapper.sparsity is None
    ]
    if waiting:
        warnings.warn(
            f"{pruner.plugin_name}: {_names(waiting, 'have', 'has')} no mask yet, nothing of it is "
            "pruned in what is exported\n  it needs training steps first: run more batches",
            stacklevel=4,
        )


def require_ranges(quantizer: Quantizer) -> None:
    """Raise ExportError where no activation has a range, and warn where some have none.

    Raises:
        ExportError: activations are to be quantized and none was seen.
    """
    wanted = [
        (wrapper, kind.key)
        for wrapper in quantizer.wrappers
        for kind in quant_types_of(wrapper)
        if kind in (QuantType.INPUT, QuantType.OUTPUT)
    ]
    unseen = [(w.name, key) for w, key in wanted if not w.__dict__.get(f"{key}_seen", True)]
    if not unseen:
        return
    remedy = (
        "  call calibrate(batches)"
        if hasattr(quantizer, "calibrate")
        else "  run batches through the model in training mode"
    ) + " after compress(), with data that is finite"
    if len(unseen) == len(wanted):
        raise ExportError(
            f"no activation has a range yet: the model was quantized and never calibrated\n{remedy}"
        )
    missing = ", ".join(f'the {key} of "{name}"' for name, key in unseen[:_NAMED])
    warnings.warn(f"no range yet of {missing}: null in the file\n{remedy}", stacklevel=4)


def _names(names: list[str], several: str = "were", one: str = "was") -> str:
    shown = ", ".join(f'"{name}"' for name in names[:_NAMED])
    rest = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return (
        f"layer{'s' if len(names) > 1 else ''} {shown}{rest} {several if len(names) > 1 else one}"
    )
