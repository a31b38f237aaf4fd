"""What ``export_model`` writes, for pruners and for quantizers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from engine.attach.computed import Stage, is_computed
from engine.errors import ExportError
from engine.export.calibration_file import calibration_text
from engine.export.onnx_file import example_of, export_onnx, require_onnx, write_program
from engine.export.packed_file import packed_weights, save_quantized
from engine.files import PathLike, save_tensors, write_whole
from engine.pruning.mask_files import masks_of

if TYPE_CHECKING:
    from engine.pruning.pruner import Pruner
    from engine.quantization.placement import Placement
    from engine.quantization.quantizer import Quantizer


def export_pruned(
    pruner: Pruner,
    model_path: PathLike,
    mask_path: PathLike | None,
    onnx_path: PathLike | None,
    input_shape: Sequence[int] | None,
    device: Any,
) -> None:
    """Write a pruned model; see ``Pruner.export_model``."""
    _needs_path(model_path)
    # By identity, since a shared parameter has several keys.
    masked: dict[int, Tensor] = {}
    for wrapper in pruner.wrappers:
        for name, parameter in (("weight", wrapper.weight), ("bias", wrapper.bias)):
            mask = wrapper.mask(name)
            if parameter is not None and mask is not None:
                masked[id(parameter)] = parameter.detach() * mask
    state = {
        key: masked.get(id(value), value.detach() if isinstance(value, Tensor) else value)
        for key, value in pruner.bound_model.state_dict(keep_vars=True).items()
    }
    if onnx_path is not None:
        export_onnx(pruner.bound_model, onnx_path, input_shape, device)
    if mask_path is not None:
        save_tensors(mask_path, masks_of(pruner.wrappers, pruner.companions))
    save_tensors(model_path, state)


def export_quantized(
    quantizer: Quantizer,
    model_path: PathLike,
    calibration_path: PathLike | None,
    onnx_path: PathLike | None,
    input_shape: Sequence[int] | None,
    device: Any,
    batches: Iterable[Any] | None,
) -> list[Placement]:
    """Write a quantized model; see ``Quantizer.export_model``."""
    _needs_path(model_path)
    _refuse_half_shared(quantizer)
    packed = packed_weights(quantizer.wrappers)
    rest = {
        key: value for key, value in quantizer.bound_model.state_dict().items() if key not in packed
    }
    # Reading the weights above has brought their grids up to date.
    text = calibration_text(quantizer.wrappers)
    placements = []
    if onnx_path is not None:
        placements = _export_integers(quantizer, onnx_path, input_shape, device, batches)
    if calibration_path is not None:
        write_whole(
            calibration_path, lambda temporary: temporary.write_text(text, encoding="utf-8")
        )
    save_quantized(model_path, packed, rest)
    return placements


def _export_integers(
    quantizer: Quantizer,
    path: PathLike,
    input_shape: Sequence[int] | None,
    device: Any,
    batches: Iterable[Any] | None,
) -> list[Placement]:
    # Here, since torch.export takes a second to import.
    from engine.export.integer_program import integer_program

    require_onnx()
    example = quantizer.dummy_input
    if example is None or input_shape is not None:
        example = example_of(quantizer.bound_model, input_shape, device)
    exported = integer_program(quantizer, example, batches, device)
    write_program(exported.program, path)
    return exported.placements


def _refuse_half_shared(quantizer: Quantizer) -> None:
    """Raise ExportError where a weight is quantized in one layer and shared with a plain one."""
    wrappers = [w for w in quantizer.wrappers if is_computed(w.module, Stage.QUANTIZE)]
    quantized = {id(w.weight): w for w in wrappers}
    modules = {id(w.module) for w in wrappers}
    for name, module in quantizer.bound_model.named_modules():
        wrapper = quantized.get(id(module._parameters.get("weight")))
        if wrapper is not None and id(module) not in modules:
            raise ExportError(
                f'layer "{wrapper.name}" is quantized and shares its weight with "{name}", which '
                "is not: one file cannot hold both; quantize both, or exclude both"
            )


def _needs_path(model_path: PathLike | None) -> None:
    if model_path is None:
        raise ExportError("export_model needs model_path, the file for the model's weights")
