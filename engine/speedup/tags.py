"""Knowing which attribute of a model a size comes from: numbers that remember where they are kept.

While a model is traced its whole-number attributes are replaced by equal numbers of a subclass. A
torch function mode sees them arrive in ``x.view(n, self.heads, -1)``, whatever functions they were
passed through on the way; what is computed from them are plain numbers again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import nn
from torch.overrides import TorchFunctionMode


class Owner(NamedTuple):
    """An attribute that holds a size."""

    module: nn.Module
    name: str


class Tagged(int):
    """A whole number that knows its attribute; computing with it gives plain numbers."""

    owner: Owner

    def __reduce__(self) -> Any:
        return int, (int(self),)

    def __copy__(self) -> int:
        return int(self)

    def __deepcopy__(self, memo: Any) -> int:
        return int(self)


class Tags(TorchFunctionMode):
    """Sees the arguments of torch functions as the model's code gave them.

    Attributes:
        given: the arguments of the call that runs, sizes in lists and tuples opened.
    """

    def __init__(self) -> None:
        super().__init__()
        self.given: list[Any] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run ``func`` with its arguments noted."""
        kwargs = kwargs or {}
        before, self.given = self.given, []
        for value in (*args, *kwargs.values()):
            self.given.extend(value if isinstance(value, list | tuple) else (value,))
        try:
            return func(*args, **kwargs)
        finally:
            self.given = before


def owner_of(given: list[Any], size: int, dim: int, rank: int) -> Owner | None:
    """Return the attribute that ``size``, asked for dimension ``dim`` of ``rank``, comes from.

    Where the call's last numbers are one for each dimension, the one at ``dim`` counts.
    """
    numbers = [value for value in given if isinstance(value, int)]
    if len(numbers) >= rank:
        numbers = [numbers[len(numbers) - rank + dim]]
    found = [value for value in numbers if isinstance(value, Tagged) and value == size]
    return found[0].owner if len(found) == 1 else None


@contextmanager
def tagged(model: nn.Module) -> Iterator[Tags]:
    """Let the whole-number attributes of all modules remember where they are kept."""
    replaced: list[tuple[dict[str, Any], str, int]] = []
    for module in model.modules():
        plain = module.__dict__
        for name, value in plain.items():
            if type(value) is int and value > 1 and not name.startswith("_"):
                number = Tagged(value)
                number.owner = Owner(module, name)
                replaced.append((plain, name, value))
                plain[name] = number
    tags = Tags()
    try:
        with tags:
            yield tags
    finally:
        for plain, name, value in replaced:
            if isinstance(plain.get(name), Tagged):
                plain[name] = value
