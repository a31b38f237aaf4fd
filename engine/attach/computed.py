"""Weights that are computed from the user's parameter each time they are read.

``layer.weight`` then returns ``transform(parameter)``, whoever reads it: the layer's own forward,
``nn.MultiheadAttention`` reading ``out_proj.weight``, the fast path of a transformer layer. The
parameter itself stays where it was, so that ``state_dict`` keys, ``named_parameters`` and their
order, and an optimizer made before or after are untouched; ``torch.nn.utils.parametrize`` renames
it and cannot be pickled, which is why it is not used here. The layer's class becomes a subclass of
itself for as long as anything is computed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from engine.attach.parametrized import is_parametrized, make_plain, only_looking

Transform = Callable[[Tensor], Tensor]
_TRANSFORMS = "_engine_transforms"


class Stage(IntEnum):
    """The order of transforms. A mask comes last: zero may not be on a quantizer's grid."""

    QUANTIZE = 0
    MASK = 1


def compute_weight(module: nn.Module, stage: Stage, transform: Transform) -> None:
    """Let ``module.weight`` be ``transform`` of the parameter, after earlier stages.

    Raises:
        ValueError: this stage is taken by another transform.
    """
    transforms = module.__dict__.setdefault(_TRANSFORMS, {})
    if stage in transforms:
        raise ValueError(f"{type(module).__name__}.weight already has a {stage.name} stage")
    module.__dict__[_TRANSFORMS] = dict(sorted({**transforms, stage: transform}.items()))
    if not hasattr(type(module), "computed_base"):
        module.__class__ = _computed_class(type(module))  # type: ignore[arg-type]


def plain_weight(module: nn.Module, stage: Stage) -> None:
    """Take ``stage`` away again; without stages the layer has its own class back."""
    transforms = module.__dict__.get(_TRANSFORMS, {})
    transforms.pop(stage, None)
    base = getattr(type(module), "computed_base", None)
    if not transforms and base is not None:
        del module.__dict__[_TRANSFORMS]
        module.__class__ = base


def is_computed(module: nn.Module, stage: Stage) -> bool:
    """Return whether ``module.weight`` has a transform at ``stage``."""
    return stage in module.__dict__.get(_TRANSFORMS, {})


def transform_of(module: nn.Module, stage: Stage) -> Transform | None:
    """Return the transform of ``module.weight`` at ``stage``, or None."""
    transform: Transform | None = module.__dict__.get(_TRANSFORMS, {}).get(stage)
    return transform


def make_parameter(module: nn.Module, value: Tensor) -> None:
    """Let the weight be a parameter of this value, in place of one that parametrizations compute.

    Transforms of the engine stay, and are applied to the parameter from now on.
    """
    base = getattr(type(module), "computed_base", None)
    if base is not None:
        module.__class__ = base
    make_plain(module, value)
    if base is not None:
        module.__class__ = _computed_class(type(module))  # type: ignore[arg-type]


@contextmanager
def held_weights(model: nn.Module) -> Iterator[None]:
    """Within, the layers of ``model`` have plain weights: what was computed when it was entered.

    For what must not see how a weight is computed, such as an exported file.
    """
    layers = [module for module in model.modules() if _TRANSFORMS in module.__dict__]
    with torch.no_grad():
        values: list[Any] = [layer.weight for layer in layers]
    own = [(layer, type(layer), layer._parameters["weight"]) for layer in layers]
    try:
        for layer, value in zip(layers, values, strict=True):
            layer.__class__ = layer.computed_base  # type: ignore[assignment]
            layer._parameters["weight"] = nn.Parameter(value, requires_grad=False)
        yield
    finally:
        for layer, cls, parameter in own:
            layer.__class__ = cls
            layer._parameters["weight"] = parameter


@contextmanager
def without_stage(module: nn.Module, stage: Stage) -> Iterator[None]:
    """Within, ``module.weight`` is computed without ``stage``."""
    transforms = module.__dict__.get(_TRANSFORMS, {})
    others = {kept: transform for kept, transform in transforms.items() if kept != stage}
    try:
        if transforms:
            module.__dict__[_TRANSFORMS] = others
        yield
    finally:
        if transforms:
            module.__dict__[_TRANSFORMS] = transforms


class _Computed:
    """Mixin whose ``weight`` runs the transforms; mixed into the layer's own class."""

    computed_base: type[nn.Module]
    _parameters: dict[str, Tensor]
    _engine_transforms: dict[Stage, Transform]

    @property
    def weight(self) -> Tensor:
        # A replica of nn.DataParallel has no parameters, its weight is set as an attribute.
        value = self._parameters.get("weight")
        if value is None:
            value = self.__dict__.get("_engine_replica_weight")
        if value is None and is_parametrized(self):  # type: ignore[arg-type]
            value = self.computed_base.weight.fget(self)  # type: ignore[attr-defined]
        if value is None:
            raise AttributeError(f"{self.computed_base.__name__} has no weight")
        for transform in self._engine_transforms.values():
            value = transform(value)
        return value

    @weight.setter
    def weight(self, value: Tensor) -> None:
        if is_parametrized(self):  # type: ignore[arg-type]
            self.computed_base.weight.fset(self, value)  # type: ignore[attr-defined]
            return
        self.__dict__["_engine_replica_weight"] = value

    def __reduce_ex__(self, protocol: Any) -> Any:
        if is_parametrized(self):  # type: ignore[arg-type]
            return super().__reduce_ex__(protocol)  # PyTorch says that it pickles none of these
        return _rebuild, (self.computed_base,), self.__dict__.copy()


@cache
def _computed_class(base: type[nn.Module]) -> type[nn.Module]:
    names = {"__module__": base.__module__, "__qualname__": base.__qualname__}
    return type(base.__name__, (_Computed, base), {"computed_base": base, **names})


def _rebuild(base: type[nn.Module]) -> nn.Module:
    cls = _computed_class(base)  # type: ignore[arg-type]
    module: nn.Module = cls.__new__(cls)
    return module


def plain_copy(model: nn.Module) -> nn.Module:
    """Return ``model``, or, where it computes weights on top of parametrizations, a plain copy.

    In the copy such a weight is a parameter of the value that it has now.
    """
    names = [
        name
        for name, module in model.named_modules()
        if _TRANSFORMS in module.__dict__ and is_parametrized(module)
    ]
    if not names:
        return model
    other = copy.deepcopy(model)
    for name in names:
        layer: Any = other.get_submodule(name)
        with torch.no_grad(), only_looking(layer):
            value = layer.weight
        for stage in Stage:
            plain_weight(layer, stage)
        make_plain(layer, value)
    return other
