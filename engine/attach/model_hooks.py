"""What the engine leaves inside a user's model; copies and pickles of the model get inert ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

#: Where a model keeps its compressors.
KEEPER = "_engine_compressors"


class OwnHook:
    """A forward hook of one model: in a copy or a pickle of the model it does nothing."""

    def __init__(self, call: Callable[..., None] | None = None) -> None:
        self._call = call

    def __call__(self, *args: Any) -> None:
        """Call what it was made with."""
        if self._call is not None:
            self._call(*args)

    def __deepcopy__(self, memo: dict[int, Any]) -> OwnHook:
        return OwnHook()

    def __reduce__(self) -> tuple[Any, ...]:
        return OwnHook, ()


class Keeper(list[Any]):
    """Keeps compressors alive as long as their model; copies of the model get an empty one."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Keeper:
        return Keeper()

    def __reduce__(self) -> tuple[Any, ...]:
        return Keeper, ()
