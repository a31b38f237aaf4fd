"""Tensors in whatever a model takes or returns: lists, dicts, dataclasses, objects."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves


def tensors_in(value: Any) -> list[Tensor]:
    """Return the tensors in ``value``, each place once, in a fixed order.

    Containers that PyTorch knows are opened, and so are mappings, dataclasses and other objects
    with attributes, but not modules.
    """
    return list(_walk(value, set()))


def _walk(value: Any, seen: set[int]) -> Iterator[Tensor]:
    for leaf in tree_leaves(value):
        if isinstance(leaf, Tensor):
            yield leaf
        elif id(leaf) not in seen and not isinstance(leaf, nn.Module | type):
            seen.add(id(leaf))
            inside = leaf if isinstance(leaf, Mapping) else getattr(leaf, "__dict__", None)
            if inside:
                yield from _walk(list(dict(inside).values()), seen)
