"""A copy of a quantized model whose layers hold integers, for ``torch.export``.

Each quantized weight is an int8 parameter under its own name that is dequantized when it is read;
each quantized activation passes a pair of quantize and dequantize. Both are PyTorch's
``quantized_decomposed`` operators with scales as plain numbers: one graph then serves
``torch.export``, ONNX and compilers, and none of them sees how a quantizer found its grids.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
import torch.ao.quantization.fx._decomposed  # defines torch.ops.quantized_decomposed
from torch import Tensor, nn

from engine.attach.computed import Stage, compute_weight, is_computed, plain_weight
from engine.attach.layout import Layout
from engine.attach.wrapper import Wrapper
from engine.errors import ExportError
from engine.export.integer_weight import IntegerWeight, integer_weight
from engine.quantization.fake_quant_call import OnInput, OnOutput, drop_copied
from engine.quantization.form import AffineForm
from engine.quantization.layer_grids import begun
from engine.quantization.quant_types import QuantType, quant_types_of

if TYPE_CHECKING:
    from engine.quantization.quantizer import Quantizer

_OPS: Any = torch.ops.quantized_decomposed


class RoundActivation:
    """Puts an activation on 8 bits and back, ``Q`` and ``DQ`` with plain numbers.

    Integers are counted from ``qmin`` and stored as uint8: kernels take two tensors of one type.

    Args:
        form: a grid of one scale and at most 256 integers.
    """

    is_copy = False

    def __init__(self, form: AffineForm) -> None:
        # 255 steps or fewer: one that has 255 keeps the end at 0 of int8, so that it clips once.
        base = -128 if form.qmin >= -128 and form.qmax == 127 else form.qmin
        zero_point, low, high = (n - base for n in (int(form.zero_point), form.qmin, form.qmax))
        self.settings = (float(form.scale), zero_point, low, high, torch.uint8)

    def __call__(self, tensor: Any) -> Any:
        """Return ``tensor`` rounded; anything but a floating-point tensor passes."""
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            return tensor
        integers = _OPS.quantize_per_tensor(tensor, *self.settings)
        return _OPS.dequantize_per_tensor(integers, *self.settings)


class _Dequantize:
    """The value of an integer weight; scales of channels and groups are buffers of the layer."""

    def __init__(self, layer: nn.Module, weight: IntegerWeight) -> None:
        self._layer = layer
        self._axis, self._group_size = weight.axis, weight.group_size
        self._layout = Layout(weight.axis or 0, weight.split)
        self._settings = (*weight.limits, weight.values.dtype)
        if self._axis is None:
            self._single = float(weight.scale), int(weight.zero_point)
            return
        layer.register_buffer("weight_scale", weight.scale.flatten())
        layer.register_buffer("weight_zero_point", weight.zero_point.flatten())

    def __call__(self, values: Tensor) -> Tensor:
        if self._axis is None:
            single = _OPS.dequantize_per_tensor(values, *self._single, *self._settings)
            return single  # type: ignore[no-any-return]
        grid = self._layer.weight_scale, self._layer.weight_zero_point
        if self._group_size is None and self._layout.groups == 1:
            channels = _OPS.dequantize_per_channel(values, *grid, self._axis, *self._settings)
            return channels  # type: ignore[no-any-return]
        # Each group is a row of its own: kernels know scales along one axis.
        rows = self._layout.rows(values)
        count, members = rows.shape
        size = members if self._group_size is None else self._group_size
        missing = -members % size
        rows = nn.functional.pad(rows, (0, missing)) if missing else rows
        flat = _OPS.dequantize_per_channel(rows.reshape(-1, size), *grid, 0, *self._settings)
        kept: Tensor = flat.reshape(count, -1)[:, :members]
        return self._layout.restored(kept, values.shape)


@torch.no_grad()
def integer_copy(quantizer: Quantizer) -> nn.Module:
    """Return a copy of the quantizer's model, in evaluation mode, that holds integers.

    It computes what the fake-quantized model does in evaluation mode, up to the rounding of
    float32; weights on which a mask lies have integer zeros there. The model is not changed.

    Raises:
        ExportError: the quantizer is not attached, a tensor has no affine form, no range yet, more
            than 8 bits, or is not float32; the layer is named.
    """
    model = quantizer.bound_model
    values = {
        name: _weight(module).detach().clone()
        for name, module in model.named_modules()
        if any(is_computed(module, stage) for stage in Stage)
    }
    names = {module: name for name, module in model.named_modules()}
    copied = copy.deepcopy(model)
    drop_copied(copied)
    layers = dict(copied.named_modules())
    for name, value in values.items():
        for stage in Stage:
            plain_weight(layers[name], stage)
        layers[name]._parameters["weight"] = nn.Parameter(value, requires_grad=False)
    for wrapper in quantizer.wrappers:
        layer = layers[wrapper.name]
        _float32_only(layer, wrapper.name)
        kinds = quant_types_of(wrapper)
        if QuantType.WEIGHT in kinds:
            if not is_computed(wrapper.module, Stage.QUANTIZE):
                raise ExportError("call compress() before a quantized model is exported")
            _hold_integers(quantizer, wrapper, layer)
        if QuantType.INPUT in kinds:
            rounding = _rounding(quantizer, wrapper, QuantType.INPUT)
            layer.register_forward_pre_hook(OnInput(rounding), with_kwargs=True)  # type: ignore[arg-type]
        if QuantType.OUTPUT in kinds:
            rounding = _rounding(quantizer, wrapper, QuantType.OUTPUT)
            # Where the quantizer has folded a batch norm into the layer, its output is the layer's.
            norm = getattr(wrapper.grids.get("weight"), "norm", None)
            behind = layer if norm is None else layers[names[norm]]
            behind.register_forward_hook(OnOutput([rounding]))  # type: ignore[list-item]
    return copied.eval()


def _hold_integers(quantizer: Quantizer, wrapper: Wrapper, layer: nn.Module) -> None:
    """Put integers in the place of the layer's weight."""
    with begun(wrapper):
        form = quantizer.affine_form(wrapper, QuantType.WEIGHT)
        value = _weight(wrapper.module)
    try:
        weight = integer_weight(value, form)
    except ExportError as error:
        raise ExportError(f'the weight of layer "{wrapper.name}": {error}') from error
    values = weight.values.to(value.device)
    layer._parameters["weight"] = nn.Parameter(values, requires_grad=False)
    compute_weight(layer, Stage.QUANTIZE, _Dequantize(layer, weight))
    layer.to(value.device)


def _rounding(quantizer: Quantizer, wrapper: Wrapper, quant_type: QuantType) -> RoundActivation:
    form = quantizer.affine_form(wrapper, quant_type)
    where = f'the {quant_type.key} of layer "{wrapper.name}"'
    if form.scale.dim():
        raise ExportError(f"{where} has {form.scale.numel()} scales, an activation has one")
    if form.qmax - form.qmin > 255:
        raise ExportError(
            f"{where}: its integers lie between {form.qmin} and {form.qmax}, integer kernels take "
            '8 bits\n  give the layer fewer "quant_bits", at most 8, or exclude it'
        )
    return RoundActivation(form)


def _weight(module: nn.Module) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight


def _float32_only(layer: nn.Module, name: str) -> None:
    for parameter in layer.parameters(recurse=False):
        if parameter.is_floating_point() and parameter.dtype != torch.float32:
            raise ExportError(
                f'layer "{name}" is {parameter.dtype}; integer kernels are exported of float32 '
                "models\n  call model.float() before the export"
            )
