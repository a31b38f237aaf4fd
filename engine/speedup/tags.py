"""Knowing which attribute of a model a size comes from: numbers that remember where they are kept.

While a model is traced its whole-number attributes are replaced by equal numbers of a subclass. A
torch function mode sees them arrive in ``x.view(n, self.heads, -1)``, whatever functions they were
passed through on the way; what is computed from them are plain numbers again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


class Owner(NamedTuple):
    """An attribute that holds a size, by itself or as number ``element`` of a list or tuple."""

    module: nn.Module
    name: str
    element: int | None = None

    def get(self) -> Any:
        """Return the number that is there now, None if there is none any more."""
        value = self.module.__dict__.get(self.name)
        return value if self.element is None or value is None else value[self.element]

    def set(self, number: int) -> None:
        """Put ``number`` in its place; a list is replaced, not changed."""
        if self.element is not None:
            held = self.module.__dict__[self.name]
            values = list(held)
            values[self.element] = number
            self.module.__dict__[self.name] = type(held)(values)
        else:
            self.module.__dict__[self.name] = number


class Tagged(int):
    """A whole number that knows its attribute; computing with it gives plain numbers."""

    owner: Owner

    def __reduce__(self) -> Any:
        return int, (int(self),)

    def __copy__(self) -> int:
        return int(self)

    def __deepcopy__(self, memo: Any) -> int:
        return int(self)


#: They hand values to Python code, and no operator runs.
_READS = frozenset({torch.Tensor.numpy, torch.Tensor.tolist, torch.Tensor.__array__})


class Tags(TorchFunctionMode):
    """Sees the arguments of torch functions as the model's code gave them.

    Args:
        read: is told of tensors whose values Python code gets without an operator.

    Attributes:
        given: the arguments of the call that runs.
    """

    def __init__(self, read: Callable[[Tensor], None]) -> None:
        super().__init__()
        self.given: list[Any] = []
        self._read = read

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run ``func`` with its arguments noted."""
        kwargs = kwargs or {}
        if func in _READS and args:
            self._read(args[0])
        before, self.given = self.given, []
        self.given.extend((*args, *kwargs.values()))
        try:
            return func(*args, **kwargs)
        finally:
            self.given = before


def owner_of(given: list[Any], size: int, dim: int, rank: int) -> Owner | None:
    """Return the attribute that ``size``, asked for dimension ``dim`` of ``rank``, comes from.

    Where the call was given a list of as many numbers, or its last numbers are one for each
    dimension, the one at ``dim`` counts.
    """
    lists = [value for value in given if isinstance(value, list | tuple) and len(value) == rank]
    numbers = [value for value in (lists[0] if lists else given) if isinstance(value, int)]
    if len(numbers) >= rank:
        numbers = [numbers[len(numbers) - rank + dim]]
    found = [value for value in numbers if isinstance(value, Tagged) and value == size]
    return found[0].owner if len(found) == 1 else None


def bounds_in(given: list[Any]) -> list[tuple[Any, Any]]:
    """Return begin and end of each slice in a call: ``x[:, 4:8]``, or its operator."""
    if len(given) > 3 and isinstance(given[0], Tensor) and isinstance(given[1], int):
        return [(given[2], given[3])]
    indices = given[1] if len(given) > 1 else ()
    indices = indices if isinstance(indices, tuple) else (indices,)
    return [(i.start, i.stop) for i in indices if isinstance(i, slice) and i.step in (None, 1)]


@contextmanager
def tagged(model: nn.Module, read: Callable[[Tensor], None]) -> Iterator[Tags]:
    """Let the whole-number attributes of all modules remember where they are kept.

    Args:
        model: the model.
        read: is told of tensors whose values Python code gets without an operator.
    """
    replaced: list[tuple[dict[str, Any], str, Any, Any]] = []
    for module in model.modules():
        plain = module.__dict__
        for name, value in plain.items():
            if type(value) not in (int, list, tuple) or name.startswith("_"):
                continue
            marked = _mark(Owner(module, name), value)
            if marked is not None:
                replaced.append((plain, name, value, marked))
                plain[name] = marked
    tags = Tags(read)
    try:
        with tags:
            yield tags
    finally:
        for plain, name, value, marked in replaced:
            if plain.get(name) is marked:
                plain[name] = value


def _holds_sizes(values: Sequence[Any]) -> bool:
    """Return whether these are whole numbers, and one of them may be a size that shrinks."""
    return all(type(x) is int for x in values) and any(x > 1 for x in values)


def _mark(owner: Owner, value: Any) -> Any:
    """Return ``value`` with tagged numbers in place of its plain ones, None if it has none."""
    if type(value) is int and value > 1:
        number = Tagged(value)
        number.owner = owner
        return number
    if type(value) in (list, tuple) and _holds_sizes(value):
        marked = [_mark(owner._replace(element=i), x) for i, x in enumerate(value)]
        return type(value)(x if m is None else m for x, m in zip(value, marked, strict=True))
    return None
