"""Hooks of quantizers as they were written for NNI, in the form that the hook has here.

There, ``quantize_input`` took ``*inputs``, and ``quantize_weight(self, wrapper, **kwargs)`` read
the weight from the layer, ``wrapper.module.weight`` or ``wrapper.module.old_weight``. Here a
layer's weight is computed while it is read, by this very method: it gets a stand-in for the layer.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor

from engine.attach.wrapper import Wrapper


def as_specified(hook: str, method: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``method`` as ``hook`` has it; itself if it is."""
    if not inspect.isfunction(method):
        return method
    parameters = inspect.signature(method).parameters
    if hook == "quantize_input":
        many = any(p.kind == p.VAR_POSITIONAL for p in parameters.values())
        return _one_input(method) if many else method
    reads_layer = "wrapper" in parameters and "weight" not in parameters
    return _given_weight(method) if reads_layer else method


def _one_input(method: Callable[..., Any]) -> Callable[..., Tensor]:
    """Return NNI's ``quantize_input(self, *inputs, wrapper, **kwargs)`` as the hook has it."""

    @functools.wraps(method, assigned=("__doc__", "__module__", "__qualname__"), updated=())
    def quantize_input(self: Any, input: Tensor, wrapper: Wrapper) -> Tensor:
        result = method(self, input, wrapper=wrapper)
        if isinstance(result, (tuple, list)) and len(result) == 1:
            result = result[0]
        return result  # type: ignore[no-any-return]

    del quantize_input.__wrapped__  # its signature is its own
    return quantize_input


def _given_weight(method: Callable[..., Any]) -> Callable[..., Tensor]:
    """Return NNI's ``quantize_weight(self, wrapper, **kwargs)`` as the hook has it."""
    parameters = inspect.signature(method).parameters.values()
    by_name = any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters)

    @functools.wraps(method, assigned=("__doc__", "__module__", "__qualname__"), updated=())
    def quantize_weight(self: Any, weight: Tensor, wrapper: Wrapper) -> Tensor:
        given = {"weight": weight} if by_name else {}
        return method(self, wrapper=_WithWeight(wrapper, weight), **given)  # type: ignore[no-any-return]

    del quantize_weight.__wrapped__
    return quantize_weight


class _Standing:
    """Stands for an object: all that is not its own is the object's."""

    def __init__(self, original: Any, **own: Any) -> None:
        self.__dict__["_original"] = original
        self.__dict__["_own"] = own

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return type(self._original)

    def __getattr__(self, name: str) -> Any:
        own = self.__dict__["_own"]
        return own[name] if name in own else getattr(self._original, name)

    def __setattr__(self, name: str, value: Any) -> None:
        own = self.__dict__["_own"]
        if name in own:
            own[name] = value
        else:
            setattr(self._original, name, value)


class _WithWeight(_Standing):
    """A wrapper whose layer has a plain weight, which may be set and is forgotten."""

    def __init__(self, wrapper: Wrapper, weight: Tensor) -> None:
        layer = _Standing(wrapper.module, weight=weight, old_weight=weight)
        super().__init__(wrapper, module=layer)
