"""What ``export_model`` writes, for pruners and for quantizers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from engine.computed import Stage, is_computed
from engine.errors import CheckpointError, ExportError
from engine.export.mask_files import masks_of
from engine.export.onnx_file import export_onnx
from engine.export.packed import PackedWeight, pack, to_plain, unpack
from engine.files import PathLike, load_tensors, save_tensors, write_whole
from engine.quant_types import QuantType, bits_of, quant_types_of
from engine.quantization.layer_grids import begun

if TYPE_CHECKING:
    from engine.pruner import Pruner
    from engine.quantizer import Quantizer
    from engine.wrapper import Wrapper

_FORMAT = "engine.quantized"
_VERSION = 1
#: What ``engine.quantization.keep_grid`` puts on a wrapper for each quantized tensor.
_GRID = ("scale", "zero_point", "qmin", "qmax", "range")


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
) -> None:
    """Write a quantized model; see ``Quantizer.export_model``."""
    _needs_path(model_path)
    _refuse_half_shared(quantizer)
    packed = packed_weights(quantizer.wrappers)
    rest = {
        key: value for key, value in quantizer.bound_model.state_dict().items() if key not in packed
    }
    # Reading the weights above has brought their grids up to date.
    text = json.dumps(calibration_of(quantizer.wrappers), indent=2)
    if onnx_path is not None:
        export_onnx(quantizer.bound_model, onnx_path, input_shape, device)
    if calibration_path is not None:
        write_whole(calibration_path, lambda temporary: temporary.write_text(text))
    save_tensors(
        model_path,
        {
            "format": _FORMAT,
            "version": _VERSION,
            "quantized": {key: to_plain(weight) for key, weight in packed.items()},
            "rest": rest,
        },
    )


def load_quantized(model: nn.Module, path: PathLike) -> nn.Module:
    """Load a file of ``Quantizer.export_model`` into a plain model; return the model.

    The weights are the fake-quantized ones, bit for bit, in the model's floating dtype.

    Raises:
        CheckpointError: the file is damaged, of another kind, or does not fit the model, which is
            then unchanged.
    """
    from engine.checkpoint import load_model

    saved = load_tensors(path)
    if not isinstance(saved, Mapping) or saved.get("format") != _FORMAT:
        raise CheckpointError(f"{path} is not a quantized model written by export_model")
    if saved.get("version") != _VERSION:
        raise CheckpointError(
            f"{path} has version {saved.get('version')}, this engine reads version {_VERSION}"
        )
    try:
        state = dict(saved["rest"])
        for key, parts in saved["quantized"].items():
            state[key] = unpack(PackedWeight(**parts))
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        # Whatever somebody else may have put in the place of our fields.
        raise CheckpointError(f"{path} is damaged: {error}") from error
    load_model(model, state)
    return model


def packed_weights(wrappers: Sequence[Wrapper]) -> dict[str, PackedWeight]:
    """Return the packed weight of each layer whose weight is quantized, by state_dict key.

    Raises:
        ExportError: a weight is not on a grid of its bits; the layer is named.
    """
    packed = {}
    for wrapper in wrappers:
        if QuantType.WEIGHT not in quant_types_of(wrapper):
            continue
        if not is_computed(wrapper.module, Stage.QUANTIZE):
            raise ExportError("call compress() before a quantized model is exported")
        with torch.no_grad(), begun(wrapper):
            weight = wrapper.module.weight
        assert isinstance(weight, Tensor)
        try:
            key = f"{wrapper.name}.weight" if wrapper.name else "weight"
            group = _group_of(wrapper, QuantType.WEIGHT)
            packed[key] = pack(
                weight,
                bits_of(wrapper, QuantType.WEIGHT),
                _flat(getattr(wrapper, "weight_scale", None), group),
                _flat(getattr(wrapper, "weight_zero_point", None), group),
                int(getattr(wrapper, "weight_qmin", 0)),
                group,
            )
        except ExportError as error:
            raise ExportError(f'layer "{wrapper.name}": {error}') from error
    return packed


def _group_of(wrapper: Wrapper, quant_type: QuantType) -> tuple[int, int] | None:
    """Return the axis of channels and the size of the groups that share a scale, if any do."""
    grid = wrapper.grids.get(quant_type.key)
    if grid is None or grid.scheme.axis is None or grid.scheme.group_size is None:
        return None
    return grid.scheme.axis, grid.scheme.group_size


def _flat(value: Tensor | None, group: tuple[int, int] | None) -> Tensor | None:
    """Return the scales of groups, kept ready to broadcast as (channels, groups, 1), without 1."""
    return value if value is None or group is None else value.squeeze(-1)


def calibration_of(wrappers: Sequence[Wrapper]) -> dict[str, Any]:
    """Return bits, grids and ranges of each layer as plain values; None where none was seen."""
    return {
        wrapper.name: {
            quant_type.key: {"bits": bits_of(wrapper, quant_type)}
            | {
                name: _plain(
                    getattr(wrapper, f"{quant_type.key}_{name}"),
                    _group_of(wrapper, quant_type) is not None,
                )
                for name in _GRID
                if hasattr(wrapper, f"{quant_type.key}_{name}")
            }
            for quant_type in quant_types_of(wrapper)
        }
        for wrapper in wrappers
    }


def _plain(value: Any, grouped: bool) -> Any:
    """Return ``value`` as JSON has it, which has no NaN: a range before any batch is None."""
    if not isinstance(value, Tensor):
        return value
    if not bool(value.isfinite().all()):
        return None
    # Scales are kept ready to broadcast: (1, channels, 1, 1), or (channels, groups, 1).
    kept = value.flatten() if value.dim() > 1 and not grouped else value
    return (kept.squeeze(-1) if grouped else kept).tolist()


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
