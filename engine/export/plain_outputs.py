"""What a model returns as tuples, lists and dicts of tensors, which every export understands."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from engine.errors import ExportError


@contextmanager
def plain_outputs(model: nn.Module) -> Iterator[None]:
    """Within, ``model`` returns plain containers; see :func:`plain`."""
    handle = model.register_forward_hook(_as_plain)
    try:
        yield
    finally:
        handle.remove()


def plain(value: Any) -> Any:
    """Return ``value`` with dataclasses and mappings as dicts, without entries that are None.

    A cache of keys and values (transformers) becomes a list of pairs.

    Raises:
        ExportError: it holds an object of another kind, whose class is named.
    """
    if value is None or isinstance(value, (Tensor, bool, int, float, str, torch.SymInt)):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, Mapping):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, (tuple, list)):
        parts = [plain(inner) for inner in value]
        return parts if isinstance(value, list) else tuple(parts)
    pairs = _keys_and_values(value)
    if pairs is not None:
        return pairs
    raise ExportError(
        f"the model returns a {type(value).__name__}, which no exported file can hold\n"
        "  return tensors, tuples, lists, dicts or dataclasses of them"
    )


def tensors(value: Any) -> list[Tensor]:
    """Return the tensors in what a model returned, in order."""
    return [leaf for leaf in pytree.tree_leaves(plain(value)) if isinstance(leaf, Tensor)]


def _as_plain(module: nn.Module, args: Any, output: Any) -> Any:
    return plain(output)


def _keys_and_values(cache: Any) -> list[tuple[Any, Any]] | None:
    layers = getattr(cache, "layers", None)
    if isinstance(layers, list) and all(hasattr(each, "keys") for each in layers):
        return [(each.keys, each.values) for each in layers]
    keys, values = getattr(cache, "key_cache", None), getattr(cache, "value_cache", None)
    if isinstance(keys, list) and isinstance(values, list):
        return list(zip(keys, values, strict=True))
    return None
