"""Quantizers: fake quantization of weights, inputs, outputs and gradients while training goes on."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from enum import IntEnum
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from engine import export
from engine.compressor import Compressor
from engine.computed import Stage, compute_weight, is_computed, plain_weight
from engine.errors import PluginError
from engine.pruner import MASKED_BY, MaskedWeight
from engine.stack import Stack, describe, placeholder
from engine.wrapper import Wrapper


class QuantType(IntEnum):
    """What of a layer is quantized; the names are those of ``quant_types``, in capitals."""

    INPUT = 0
    WEIGHT = 1
    OUTPUT = 2
    GRADIENT = 3
    QUANT_INPUT = 0
    QUANT_WEIGHT = 1
    QUANT_OUTPUT = 2

    @property
    def key(self) -> str:
        """The name in a configuration: "input", "weight", "output", "gradient"."""
        return self.name.lower()


class QuantGrad(torch.autograd.Function):
    """The gradient of a quantizer; this base is the straight-through estimator.

    A subclass overrides the static method :meth:`quant_backward` and is set as ``quant_grad`` on a
    quantizer; implementing the hook ``quant_backward`` on the quantizer does the same.
    """

    @staticmethod
    def quant_backward(
        tensor: Tensor,
        grad_output: Tensor,
        quant_type: QuantType,
        scale: Tensor | None,
        zero_point: Tensor | None,
        qmin: int,
        qmax: int,
    ) -> Tensor:
        """Return the gradient with respect to ``tensor``; see ``HookSpecs.quant_backward``."""
        return grad_output

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, quantized: Tensor, call: FakeQuantCall) -> Tensor:
        """Return ``quantized``."""
        ctx.save_for_backward(tensor)
        ctx.call = call
        return quantized

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        """Return what :meth:`quant_backward` says."""
        (tensor,) = ctx.saved_tensors
        return ctx.call.backward(tensor, grads[0]), None, None


class _StraightThrough(torch.autograd.Function):
    """Forward: the quantized value. Backward: the gradient as it is. Saves nothing."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, quantized: Tensor) -> Tensor:
        return quantized

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class _GradientHook(torch.autograd.Function):
    """Forward: identity. Backward: the quantized gradient."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, call: FakeQuantCall) -> Tensor:
        ctx.save_for_backward(tensor)
        ctx.call = call
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (tensor,) = ctx.saved_tensors
        return ctx.call.backward(tensor, grads[0]), None


class Quantizer(Compressor):
    """Base of quantization algorithms.

    A subclass implements ``quantize_weight``, ``quantize_input`` and ``quantize_output`` as far as
    it supports them.

    Attributes:
        quant_grad: the :class:`QuantGrad` subclass that gives the gradient; None when the quantize
            methods are differentiable themselves (they are then called under autograd).
    """

    kind = "quantization"
    quant_grad: ClassVar[type[QuantGrad] | None] = QuantGrad

    # -- hooks ---------------------------------------------------------------------------------

    @placeholder
    def quantize_weight(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the fake-quantized weight; see ``HookSpecs.quantize_weight``."""
        raise NotImplementedError

    @placeholder
    def quantize_input(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the fake-quantized input; see ``HookSpecs.quantize_input``."""
        raise NotImplementedError

    @placeholder
    def quantize_output(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the fake-quantized output; see ``HookSpecs.quantize_output``."""
        raise NotImplementedError

    @placeholder
    def quant_backward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the gradient of a quantized value; see ``HookSpecs.quant_backward``."""
        raise NotImplementedError

    # -- surface -------------------------------------------------------------------------------

    def unwrap(self, *, bake: bool = False) -> nn.Module:
        """Detach from the model; with ``bake=True`` the weights keep their quantized values."""
        if bake and self._stack is not None:
            for wrapper in self.wrappers:
                if is_computed(wrapper.module, Stage.QUANTIZE):
                    with torch.no_grad():
                        wrapper.weight.copy_(wrapper.module.weight)  # type: ignore[arg-type]
        return super().unwrap()

    def export_model(
        self,
        model_path: export.PathLike,
        calibration_path: export.PathLike | None = None,
        onnx_path: export.PathLike | None = None,
        input_shape: list[int] | tuple[int, ...] | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        """Write the quantized weights as packed integers, and ONNX.

        Args:
            model_path: a file for ``engine.export.load_quantized``: weights of quantized layers as
                packed integers with their scales, everything else as it is.
            calibration_path: ranges, scales and bits of each layer as JSON.
            onnx_path: the model as ONNX with fake-quantized values; needs ``engine[onnx]``.
            input_shape: shape of the one input, batch included, for ``onnx_path``.
            device: where the ONNX export runs; by default where the model is.

        Raises:
            ExportError: weights that are not on an affine grid, or a file that cannot be written.
        """
        export.export_quantized(
            self, model_path, calibration_path, onnx_path, input_shape, device
        )

    # -- inside --------------------------------------------------------------------------------

    def _needs_weight(self, entry: Mapping[str, Any]) -> bool:
        return "weight" in entry.get("quant_types", ())

    def _require(self, stack: Stack) -> None:
        needed = {
            (quant_type, wrapper.name)
            for wrapper in self.wrappers
            for quant_type in quant_types_of(wrapper)
        }
        for quant_type, name in sorted(needed):
            hook = "quant_backward" if quant_type == QuantType.GRADIENT else None
            hook = hook or f"quantize_{quant_type.key}"
            if not stack.has(hook):
                raise PluginError(
                    f'{describe(self)} has no {hook}, which quant_types ["{quant_type.key}"] of '
                    f'layer "{name}" needs',
                    plugin=describe(self),
                    hook=hook,
                    layer=name,
                )

    def _attach(self, stack: Stack) -> None:
        self._handles: list[Any] = []
        for wrapper in self.wrappers:
            module = wrapper.module
            calls = {kind: FakeQuantCall(self, stack, wrapper, kind)
                     for kind in quant_types_of(wrapper)}
            if QuantType.WEIGHT in calls:
                if is_computed(module, Stage.QUANTIZE):
                    raise PluginError(
                        f'layer "{wrapper.name}" is already quantized; unwrap() that quantizer',
                        plugin=describe(self),
                        layer=wrapper.name,
                    )
                compute_weight(module, Stage.QUANTIZE, calls[QuantType.WEIGHT])
                masked_by = module.__dict__.get(MASKED_BY)
                if masked_by is not None and not is_computed(module, Stage.MASK):
                    compute_weight(module, Stage.MASK, MaskedWeight(masked_by))
            if QuantType.INPUT in calls:
                self._handles.append(
                    module.register_forward_pre_hook(
                        _OnInput(calls[QuantType.INPUT]), with_kwargs=True
                    )
                )
            after = [calls[k] for k in (QuantType.OUTPUT, QuantType.GRADIENT) if k in calls]
            if after:
                self._handles.append(module.register_forward_hook(_OnOutput(after)))

    def _detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        for wrapper in self.wrappers:
            module = wrapper.module
            if QuantType.WEIGHT in quant_types_of(wrapper):
                plain_weight(module, Stage.QUANTIZE)
                masked_by = module.__dict__.get(MASKED_BY)
                if masked_by is not None and not masked_by.straight_through:
                    plain_weight(module, Stage.MASK)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_handles": []}


class FakeQuantCall:
    """One kind of quantization on one layer, its hooks resolved; lives inside the model.

    A copy of the model gets a copy of the wrapper and shares the algorithm.
    """

    def __init__(
        self, quantizer: Quantizer, stack: Stack, wrapper: Wrapper, quant_type: QuantType
    ) -> None:
        self.wrapper = wrapper
        self.quant_type = quant_type
        self.quantize: Callable[..., Tensor] | None = None
        if quant_type != QuantType.GRADIENT:
            self.quantize = stack.resolve(f"quantize_{quant_type.key}")
        self.custom = stack.resolve("quant_backward")
        # An instance of NNI's idiom, ``self.quant_grad = ClipGrad.apply``, names its class.
        grad: Any = getattr(quantizer, "quant_grad", None)
        self.grad: type[QuantGrad] | None = getattr(grad, "__self__", grad)

    def __call__(self, tensor: Tensor) -> Tensor:
        """Return ``tensor`` quantized; anything but a floating-point tensor passes."""
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            return tensor
        if self.quant_type == QuantType.GRADIENT:
            return _GradientHook.apply(tensor, self) if tensor.requires_grad else tensor
        assert self.quantize is not None
        if self.grad is None:
            return self.quantize(tensor, self.wrapper)
        with torch.no_grad():
            quantized = self.quantize(tensor, self.wrapper)
        if self.custom is None and self.grad.quant_backward is QuantGrad.quant_backward:
            return _StraightThrough.apply(tensor, quantized)
        return self.grad.apply(tensor, quantized, self)

    def backward(self, tensor: Tensor, grad_output: Tensor) -> Tensor:
        """Return the gradient with respect to ``tensor``."""
        wrapper, key = self.wrapper, self.quant_type.key
        scale = getattr(wrapper, f"{key}_scale", None)
        zero_point = getattr(wrapper, f"{key}_zero_point", None)
        qmin = getattr(wrapper, f"{key}_qmin", 0)
        qmax = getattr(wrapper, f"{key}_qmax", 2 ** bits_of(wrapper, self.quant_type) - 1)
        if self.custom is not None:
            return self.custom(
                tensor, grad_output, self.quant_type, wrapper, scale, zero_point, qmin, qmax
            )
        assert self.grad is not None
        return self.grad.quant_backward(
            tensor, grad_output, self.quant_type, scale, zero_point, qmin, qmax
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> FakeQuantCall:
        other = copy.copy(self)
        memo[id(self)] = other
        other.wrapper = copy.deepcopy(self.wrapper, memo)
        return other


class _OnInput:
    def __init__(self, call: FakeQuantCall) -> None:
        self.call = call

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, Any]:
        call = self.call
        return tuple(map(call, args)), {key: call(value) for key, value in kwargs.items()}


class _OnOutput:
    def __init__(self, calls: list[FakeQuantCall]) -> None:
        self.calls = calls

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        for call in self.calls:
            output = _through(call, output)
        return output


def _through(call: FakeQuantCall, value: Any) -> Any:
    if isinstance(value, Tensor):
        return call(value)
    if isinstance(value, tuple):
        items = [_through(call, item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    if isinstance(value, list):
        return [_through(call, item) for item in value]
    if isinstance(value, dict):
        return {key: _through(call, item) for key, item in value.items()}
    return value


def quant_types_of(wrapper: Wrapper) -> list[QuantType]:
    """Return what of the layer is quantized, in the order of :class:`QuantType`."""
    names = wrapper.config.get("quant_types", ())
    return sorted(QuantType[name.upper()] for name in names)


def bits_of(wrapper: Wrapper, quant_type: QuantType | str) -> int:
    """Return the number of bits that the layer's entry gives ``quant_type``."""
    key = quant_type.key if isinstance(quant_type, QuantType) else quant_type
    bits = wrapper.config["quant_bits"]
    return int(bits[key] if isinstance(bits, Mapping) else bits)
