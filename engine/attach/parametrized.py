"""Layers whose weight ``torch.nn.utils.parametrize`` computes: weight norm, spectral norm, others.

Such a weight is no parameter, so nothing can be multiplied into it in place. What the engine does
to it is computed after the user's parametrizations (:mod:`engine.attach.computed`), each time the
weight is read, and these and their parameters stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def is_parametrized(module: nn.Module) -> bool:
    """Return whether the weight of ``module`` is computed by parametrizations of PyTorch's."""
    return "weight" in module._modules.get("parametrizations", {})  # type: ignore[operator]


def own_weight(module: nn.Module) -> Tensor | None:
    """Return the weight as the layer has it without the engine, or None where it has none.

    That is its parameter, or what its parametrizations make, with gradients.
    """
    parameter = module._parameters.get("weight")
    if parameter is not None or not is_parametrized(module):
        return parameter
    made_by: Any = module._modules["parametrizations"]["weight"]  # type: ignore[index]
    with only_looking(module):
        value: Tensor = made_by()
    return value


@contextmanager
def only_looking(module: nn.Module) -> Iterator[None]:
    """Within, reading the weight changes nothing: spectral norm iterates where it trains."""
    modes = []
    if is_parametrized(module):
        made_by: Any = module._modules["parametrizations"]["weight"]  # type: ignore[index]
        modes = [(each, each.training) for each in made_by.modules()]
        made_by.eval()
    try:
        yield
    finally:
        for each, training in modes:
            each.training = training


def source_of(module: nn.Module) -> nn.Parameter | None:
    """Return the parameter that the weight is, or the first of those that it is computed of."""
    parameter = module._parameters.get("weight")
    if parameter is not None or not is_parametrized(module):
        return parameter
    made_by: Any = module._modules["parametrizations"]["weight"]  # type: ignore[index]
    return next(iter(made_by._parameters.values()), None)


@torch.no_grad()
def make_plain(module: nn.Module, value: Tensor) -> None:
    """Take the parametrizations of the weight away; it is a parameter of this value then.

    ``remove_parametrizations`` changes the layer's class, which copies of the layer share.
    """
    source, cls = source_of(module), type(module)
    made: Any = module._modules["parametrizations"]
    del made["weight"]
    if len(made):
        own = {k: v for k, v in vars(cls).items() if k not in ("weight", "__dict__", "__weakref__")}
        module.__class__ = type(cls.__name__, cls.__bases__, own)
    else:
        del module._modules["parametrizations"]
        module.__class__ = cls.__bases__[0]
    others = dict(module._parameters)
    module._parameters.clear()
    module._parameters["weight"] = nn.Parameter(
        value.detach().clone(), requires_grad=source is not None and source.requires_grad
    )
    module._parameters.update(others)


def refusal(name: str) -> str:
    """Return what is said where only a plain weight will do, and what makes one."""
    return (
        f'the weight of layer "{name}" is computed by torch.nn.utils.parametrize\n'
        "  unwrap(bake=True) makes a plain weight of it, as does, before compress(), "
        'torch.nn.utils.parametrize.remove_parametrizations(layer, "weight")'
    )
