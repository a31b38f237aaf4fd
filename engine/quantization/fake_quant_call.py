"""One quantized tensor of one layer: its hooks, called in forward and in backward.

These objects live inside the user's model, so everything here can be copied and pickled with it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from engine.attach.computed import Stage, plain_weight, transform_of
from engine.attach.wrapper import Wrapper
from engine.plugins.blame import PASSING, at_fault, failure
from engine.plugins.hook_calls import adapt
from engine.plugins.stack import Stack
from engine.quantization.quant_types import QuantType, bits_of
from engine.quantization.uniform import straight_through

#: The arguments of ``QuantGrad.quant_backward``; NNI's manuals take the first three.
_GRAD = ("tensor", "grad_output", "quant_type", "scale", "zero_point", "qmin", "qmax")


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


class Differentiates(Protocol):
    """A quantizer, of which a call needs to know how to differentiate."""

    @property
    def quant_grad(self) -> type[QuantGrad] | None:
        """The gradient; None where the quantize methods are differentiable themselves."""


class FakeQuantCall:
    """One kind of quantization on one layer, its hooks resolved; lives inside the model.

    A copy of the model gets a copy of the wrapper and shares the algorithm.

    Attributes:
        is_copy: whether this belongs to a copied or unpickled model, which no quantizer detaches.
    """

    is_copy = False

    def __init__(
        self, quantizer: Differentiates, stack: Stack, wrapper: Wrapper, quant_type: QuantType
    ) -> None:
        self.wrapper = wrapper
        self.quant_type = quant_type
        self._quantizes = stack.provider(f"quantize_{quant_type.key}") or quantizer
        self._differentiates = stack.provider("quant_backward") or quantizer
        self.quantize: Callable[..., Tensor] | None = None
        if quant_type == QuantType.GRADIENT:
            self.custom = stack.resolve("quant_backward")
            self.grad: type[QuantGrad] | None = None
            self._backward = None
            return
        self.quantize = stack.resolve(f"quantize_{quant_type.key}")
        # NNI's idiom ``self.quant_grad = ClipGrad.apply`` names its class.
        grad: Any = getattr(quantizer.quant_grad, "__self__", quantizer.quant_grad)
        self.custom = stack.resolve("quant_backward")
        own = stack.provider("quant_backward") is quantizer
        if own and _depth(quantizer, "quant_grad") <= _depth(quantizer, "quant_backward"):
            self.custom = None
        elif self.custom is not None and grad is None:
            grad = QuantGrad
        self.grad = grad
        #: The gradient's own method, given those of its arguments that it takes.
        self._backward = (
            None if grad is None else adapt(quantizer, "quant_backward", grad.quant_backward, _GRAD)
        )

    def __call__(self, tensor: Tensor) -> Tensor:
        """Return ``tensor`` quantized; anything but a floating-point tensor passes."""
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            return tensor
        if self.quantize is None:
            apply: Callable[..., Tensor] = _GradientHook.apply
            return apply(tensor, self) if tensor.requires_grad else tensor
        if self.grad is None:
            return self._quantized(tensor, self.quantize)
        with torch.no_grad():
            quantized = self._quantized(tensor, self.quantize)
        if self.custom is None and self.grad.quant_backward is QuantGrad.quant_backward:
            return straight_through(tensor, quantized)
        by_hook: Callable[..., Tensor] = self.grad.apply
        return by_hook(tensor, quantized, self)

    def _quantized(self, tensor: Tensor, quantize: Callable[..., Tensor]) -> Tensor:
        if torch.compiler.is_compiling():  # a graph has no place for who is to blame
            return self._like(tensor, quantize(tensor, self.wrapper))
        try:
            return self._like(tensor, quantize(tensor, self.wrapper))
        except PASSING:
            raise
        except Exception as error:
            hook = f"quantize_{self.quant_type.key}"
            raise failure(self._quantizes, hook, self.wrapper, error) from error

    def backward(self, tensor: Tensor, grad_output: Tensor) -> Tensor:
        """Return the gradient with respect to ``tensor``."""
        if torch.compiler.is_compiling():
            return self._gradient(tensor, grad_output)
        try:
            return self._gradient(tensor, grad_output)
        except PASSING:
            raise
        except Exception as error:
            plugin = self._differentiates
            raise failure(plugin, "quant_backward", self.wrapper, error) from error

    def _gradient(self, tensor: Tensor, grad_output: Tensor) -> Tensor:
        wrapper, key = self.wrapper, self.quant_type.key
        scale = getattr(wrapper, f"{key}_scale", None)
        zero_point = getattr(wrapper, f"{key}_zero_point", None)
        qmin = getattr(wrapper, f"{key}_qmin", 0)
        qmax = getattr(wrapper, f"{key}_qmax", 2 ** bits_of(wrapper, self.quant_type) - 1)
        if self.custom is not None:
            grad: Tensor = self.custom(
                tensor, grad_output, self.quant_type, wrapper, scale, zero_point, qmin, qmax
            )
        else:
            assert self._backward is not None
            grad = self._backward(
                tensor, grad_output, self.quant_type, scale, zero_point, qmin, qmax
            )
        return grad.to(grad_output.dtype)  # a hook may compute in float32

    def _like(self, tensor: Tensor, quantized: Any) -> Tensor:
        """Return ``quantized`` in the dtype of ``tensor``, if it can stand for it at all."""
        if (
            isinstance(quantized, Tensor)
            and quantized.shape == tensor.shape
            and quantized.dtype == tensor.dtype
        ):
            return quantized
        if not isinstance(quantized, Tensor) or quantized.shape != tensor.shape:
            hook, name = f"quantize_{self.quant_type.key}", self.wrapper.name
            got = (
                f"a tensor of shape {tuple(quantized.shape)}"
                if isinstance(quantized, Tensor)
                else f"a {type(quantized).__name__}"
            )
            raise at_fault(
                self._quantizes,
                f'for layer "{name}" ({self.wrapper.type}) returned {got}\n'
                f"  it must return a tensor of shape {tuple(tensor.shape)}, the quantized values",
                more=f".{hook}",
                hook=hook,
                layer=name,
            )
        result: Tensor = quantized.to(tensor.dtype)
        return result

    def __deepcopy__(self, memo: dict[int, Any]) -> FakeQuantCall:
        other = copy.copy(self)  # is_copy, as it is for a pickle
        memo[id(self)] = other
        other.wrapper = copy.deepcopy(self.wrapper, memo)
        other.wrapper.__dict__["origin"] = self.wrapper.origin or self.wrapper
        return other

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "is_copy": True}


def _depth(quantizer: object, name: str) -> int:
    """Return how far from the instance ``name`` is defined; what is nearer was decided later."""
    if name in vars(quantizer):
        return -1
    return next(i for i, cls in enumerate(type(quantizer).__mro__) if name in vars(cls))


def drop_copied(model: nn.Module) -> None:
    """Take away what copying or pickling a quantized model has left in it."""
    for module in model.modules():
        if getattr(transform_of(module, Stage.QUANTIZE), "is_copy", False):
            plain_weight(module, Stage.QUANTIZE)
        for hooks, extra in (
            (module._forward_pre_hooks, module._forward_pre_hooks_with_kwargs),
            (module._forward_hooks, module._forward_hooks_with_kwargs),
        ):
            for key in [key for key, hook in hooks.items() if getattr(hook, "is_copy", False)]:
                del hooks[key]
                extra.pop(key, None)


class OnInput:
    """A forward pre-hook that quantizes what a layer is called with, keywords included."""

    def __init__(self, call: FakeQuantCall) -> None:
        self.call = call

    @property
    def is_copy(self) -> bool:
        """Whether this is in a copied model."""
        return self.call.is_copy

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, Any]:
        """Return positional and keyword arguments, tensors quantized."""
        call = self.call
        if kwargs:
            kwargs = {key: call(value) for key, value in kwargs.items()}
        return tuple(map(call, args)), kwargs


class OnOutput:
    """A forward hook that quantizes every tensor a layer returns, however they are nested."""

    def __init__(self, calls: list[FakeQuantCall]) -> None:
        self.calls = calls

    @property
    def is_copy(self) -> bool:
        """Whether this is in a copied model."""
        return any(call.is_copy for call in self.calls)

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Return the output, tensors quantized."""
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
