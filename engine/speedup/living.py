"""A table about tensors, by identity: an entry lasts as long as its tensor lives."""

from __future__ import annotations

import weakref
from typing import Generic, TypeVar

from torch import Tensor

V = TypeVar("V")


class Living(Generic[V]):
    """Values by tensor. That two tensors are equal says nothing: a key is the very tensor."""

    def __init__(self) -> None:
        self._values: dict[int, V] = {}
        self._alive: dict[int, weakref.ref[Tensor]] = {}

    def get(self, tensor: Tensor) -> V | None:
        """Return what is known of ``tensor``, None if nothing is."""
        return self._values.get(id(tensor))

    def put(self, tensor: Tensor, value: V) -> None:
        """Say what is known of ``tensor``."""
        key = id(tensor)
        if key not in self._alive:
            values, alive = self._values, self._alive

            def forget(_: object) -> None:
                # Before the memory, and with it the identity, is somebody else's.
                del values[key], alive[key]

            alive[key] = weakref.ref(tensor, forget)
        self._values[key] = value
