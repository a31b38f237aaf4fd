"""What ``export_model`` writes, for pruners and for quantizers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from engine.attach.computed import plain_copy
from engine.attach.parametrized import is_parametrized, refusal
from engine.errors import ExportError
from engine.export.calibration_file import calibration_text
from engine.export.comparison import Sample, sample_of
from engine.export.free_sizes import as_call, fixed_size
from engine.export.onnx_file import (
    NotExportedError,
    OnnxOptions,
    example_of,
    export_onnx,
    require_onnx,
    write_program,
)
from engine.export.packed_file import packed_weights, save_quantized
from engine.export.ready import require_attached, require_ranges, warn_without_masks
from engine.files import PathLike, save_tensors, write_whole
from engine.pruning.mask_files import masks_of
from engine.quantization.shared_weights import half_shared
from engine.user_code.batches import batches_in

if TYPE_CHECKING:
    from engine.attach.compressor import Compressor
    from engine.pruning.blocks import BlockPruner
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
    options: OnnxOptions,
) -> None:
    """Write a pruned model; see ``Pruner.export_model``."""
    _needs_path(model_path)
    require_attached(pruner)
    warn_without_masks(pruner)
    model = plain_copy(pruner.bound_model)
    # By identity, since a shared parameter has several keys.
    masked: dict[int, Tensor] = {}
    for wrapper in pruner.wrappers:
        layer = model.get_submodule(wrapper.name)
        for name in ("weight", "bias"):
            parameter, mask = layer._parameters.get(name), wrapper.mask(name)
            if parameter is not None and mask is not None:
                masked[id(parameter)] = parameter.detach() * mask
    state = {
        key: masked.get(id(value), value.detach() if isinstance(value, Tensor) else value)
        for key, value in model.state_dict(keep_vars=True).items()
    }
    if onnx_path is not None:
        example = onnx_example(pruner, input_shape, device)
        export_onnx(model, onnx_path, example, device, options)
    if mask_path is not None:
        save_tensors(mask_path, masks_of(pruner.wrappers, pruner.companions), read_back=True)
    save_tensors(model_path, state)


def export_blocks(
    pruner: BlockPruner,
    model_path: PathLike,
    onnx_path: PathLike | None,
    input_shape: Sequence[int] | None,
    device: Any,
    options: OnnxOptions,
) -> None:
    """Write a model without its removed blocks; see ``BlockPruner.export_model``."""
    _needs_path(model_path)
    if pruner.speedup_report is None:
        require_attached(pruner)
    model = plain_copy(pruner.smaller_copy())
    if onnx_path is not None:
        export_onnx(model, onnx_path, onnx_example(pruner, input_shape, device), device, options)
    save_tensors(model_path, model.state_dict())


def export_quantized(
    quantizer: Quantizer,
    model_path: PathLike,
    calibration_path: PathLike | None,
    onnx_path: PathLike | None,
    input_shape: Sequence[int] | None,
    device: Any,
    batches: Iterable[Any] | None,
    options: OnnxOptions,
) -> list[Placement]:
    """Write a quantized model; see ``Quantizer.export_model``."""
    _needs_path(model_path)
    require_attached(quantizer)
    _refuse_half_shared(quantizer)
    if calibration_path is not None or onnx_path is not None:
        require_ranges(quantizer)
    packed = packed_weights(quantizer.wrappers)
    model = plain_copy(quantizer.bound_model)
    rest = {key: value for key, value in model.state_dict().items() if key not in packed}
    # Reading the weights above has brought their grids up to date.
    text = calibration_text(quantizer.wrappers)
    placements = []
    if onnx_path is not None and model is not quantizer.bound_model:
        raise ExportError(
            "an ONNX file of integers is made of plain weights, and "
            + "; ".join(refusal(w.name) for w in quantizer.wrappers if is_parametrized(w.module))
        )
    if onnx_path is not None:
        example = None
        if input_shape is not None or quantizer.dummy_input is None:
            require_onnx()
            options.check()
            example = onnx_example(quantizer, input_shape, device)
        placements = export_integers(quantizer, onnx_path, example, device, batches, options)
    if calibration_path is not None:
        write_whole(
            calibration_path, lambda temporary: temporary.write_text(text, encoding="utf-8")
        )
    save_quantized(model_path, packed, rest)
    return placements


def export_integers(
    quantizer: Quantizer,
    path: PathLike,
    example: Any,
    device: Any,
    batches: Iterable[Any] | None,
    options: OnnxOptions,
) -> list[Placement]:
    """Write a quantized model as QDQ ONNX and return which operators compute with integers.

    Args:
        quantizer: attached, with ranges of what it quantizes.
        path: the file.
        example: inputs; None: the quantizer's ``dummy_input``.
        device: where to trace; None: where the model is.
        batches: sample inputs, which give ranges to what integer kernels need and has none.
        options: sizes, opset and comparison.

    Raises:
        ExportError: a tensor without an affine form or with more than 8 bits, a model that cannot
            be exported, or a file that computes something else.
    """
    # Here, since torch.export takes a second to import.
    from engine.export.integer_program import integer_programs

    require_onnx()
    options.check()
    example = quantizer.dummy_input if example is None else example
    kept = None if batches is None else list(batches_in(batches, "the export", ExportError))
    failed: NotExportedError | None = None
    for exported in integer_programs(quantizer, example, kept, device, options.dynamic_axes):
        samples: list[Sample] = []
        if options.compare != "no":
            samples = _samples(quantizer, example, kept, device, exported.program)
        try:
            write_program(exported.program, path, options, samples, exported.names)
        except NotExportedError as error:
            failed = error
            continue
        return exported.placements
    assert failed is not None
    raise failed


def explained_by_integers(
    quantizer: Quantizer, example: Any, batches: Iterable[Any] | None = None
) -> list[float]:
    """Return how far half a step at each rounding moves each output for ``example``."""
    from engine.export.integer_program import integer_program

    args, kwargs = as_call(example)
    program = integer_program(quantizer, example, batches).program
    return sample_of(program.module(check_guards=False), args, kwargs, program).explained


def onnx_example(compressor: Compressor, input_shape: Sequence[int] | None, device: Any) -> Any:
    """Return the inputs to export with: of ``input_shape``, or else the compressor's own."""
    if compressor.dummy_input is not None and input_shape is None:
        return compressor.dummy_input
    return example_of(compressor.bound_model, input_shape, device)


#: Of a batch, so many items are compared.
_COMPARED = 8


def _samples(
    quantizer: Quantizer, example: Any, batches: list[Any] | None, device: Any, program: Any
) -> list[Sample]:
    """Return what the model computes for a batch, or for the example where there are none.

    An example that was made up is stretched over the range of the first input that has one.
    """
    args, kwargs = as_call(example)
    if batches:
        batch = batches[0]
        if isinstance(batch, (tuple, list)):
            batch = tuple(batch[: max(len(args), 1)])
        args, kwargs = as_call(_first_items(batch, program))
    elif quantizer.dummy_input is not example:
        low, high = _first_range(quantizer)
        args = tuple(low + (tensor + 1) / 2 * (high - low) for tensor in args)
    model = quantizer.bound_model
    training = [module for module in model.modules() if module.training]
    home = next(model.parameters(), torch.empty(0)).device
    try:
        model.eval()
        if device is not None:
            model.to(device)
        return [sample_of(model, args, kwargs, program)]
    finally:
        if device is not None:
            model.to(home)
        for module in training:
            module.training = True


def _first_items(batch: Any, program: Any) -> Any:
    """Return a part of a batch where the program takes any number of items, else all of it."""
    tensors = [leaf for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor)]
    counts = {tensor.shape[0] if tensor.dim() else 0 for tensor in tensors}
    inputs = set(program.graph_signature.user_inputs)
    nodes = [node for node in program.graph.nodes if node.name in inputs]
    shapes = [node.meta["val"].shape for node in nodes if isinstance(node.meta["val"], Tensor)]
    free = all(len(shape) and fixed_size(shape[0]) is None for shape in shapes)
    if len(counts) != 1 or not free:
        return batch
    return pytree.tree_map_only(Tensor, lambda t: t[:_COMPARED], batch)


def _first_range(quantizer: Quantizer) -> tuple[float, float]:
    for wrapper in quantizer.wrappers:
        kept = wrapper._buffers.get("input_range")
        if kept is not None and bool(kept.isfinite().all()):
            return float(kept[0]), float(kept[1])
    return -1.0, 1.0


def _refuse_half_shared(quantizer: Quantizer) -> None:
    """Raise ExportError where a weight is quantized in one layer and shared with a plain one."""
    for name, other in half_shared(quantizer.bound_model, quantizer.wrappers):
        raise ExportError(
            f'layer "{name}" is quantized and shares its weight with "{other}", which '
            "is not: one file cannot hold both; quantize both, or exclude both"
        )


def _needs_path(model_path: PathLike | None) -> None:
    if model_path is None:
        raise ExportError("export_model needs model_path, the file for the model's weights")
