"""Functions that a user hangs on the layers to see their activations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from engine.attach.model_hooks import OwnHook
from engine.attach.recomputed import is_recomputed
from engine.attach.wrapper import Wrapper

Collector = Callable[[Wrapper, tuple[Any, ...], Any], None]


class ActivationCollectors:
    """Collectors by number, each called in every forward of every wrapped layer."""

    def __init__(self) -> None:
        self._handles: dict[int, list[RemovableHandle]] = {}
        self._added = 0

    def add(self, wrappers: Sequence[Wrapper], collector: Collector) -> int:
        """Call ``collector(wrapper, input, output)`` from now on; return its number.

        A recomputed forward shows it nothing new, and is not told.
        """
        self._added += 1
        self._handles[self._added] = [
            wrapper.module.register_forward_hook(OwnHook(_Telling(wrapper, collector)))
            for wrapper in wrappers
        ]
        return self._added

    def remove(self, identifier: int) -> None:
        """Take a collector away.

        Raises:
            ValueError: there is no collector with this number.
        """
        if identifier not in self._handles:
            raise ValueError(
                f"there is no activation collector {identifier!r}; there are: "
                f"{sorted(self._handles) or 'none'}"
            )
        for handle in self._handles.pop(identifier):
            handle.remove()

    def clear(self) -> None:
        """Take all collectors away."""
        for identifier in list(self._handles):
            self.remove(identifier)


class _Telling:
    """A forward hook that calls a collector with the layer's wrapper."""

    def __init__(self, wrapper: Wrapper, collector: Collector) -> None:
        self._wrapper = wrapper
        self._collector = collector

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if not is_recomputed():
            self._collector(self._wrapper, args, output)
