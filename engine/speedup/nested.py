"""Tensors in whatever a model takes or returns: lists, dicts, dataclasses, objects."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves


def tensors_in(value: Any) -> list[Tensor]:
    """Return the tensors in ``value``, each place once, in a fixed order.

    Containers that PyTorch knows are opened, and so are mappings, dataclasses and other objects
    with attributes, but not modules.
    """
    if isinstance(value, Tensor):
        return [value]
    if type(value) in (list, tuple) and all(isinstance(each, Tensor) for each in value):
        return list(value)
    return list(_walk(value, set()))


def tensors_given(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """Return the tensors among an operator's arguments: they are there, or in one list of them."""
    found: list[Tensor] = []
    for value in (*args, *kwargs.values()) if kwargs else args:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found.extend(each for each in value if isinstance(each, Tensor))
    return found


def _walk(value: Any, seen: set[int]) -> Iterator[Tensor]:
    for leaf in tree_leaves(value):
        if isinstance(leaf, Tensor):
            yield leaf
        elif id(leaf) not in seen and not isinstance(leaf, nn.Module | type):
            seen.add(id(leaf))
            inside = leaf if isinstance(leaf, Mapping) else getattr(leaf, "__dict__", None)
            if inside:
                yield from _walk(list(dict(inside).values()), seen)
