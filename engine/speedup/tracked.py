"""What is known of each tensor while a model runs: labels, and which slices are constant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Slot(NamedTuple):
    """A parameter or buffer: the module that holds it, and its name there."""

    module: nn.Module
    name: str
    path: str


class Grouped(NamedTuple):
    """A grouped convolution's weight: its channels as the activations count them.

    ``inputs`` is None when the input's channels are fixed.
    """

    groups: int
    inputs: Tensor | None
    outputs: Tensor
    transposed: bool


class Tracked:
    """One tensor, seen once.

    Attributes:
        shape: its shape.
        labels: for each dimension int64 (size,), or None where nothing can be removed.
        dead: for each dimension bool (size,): the slice does not depend on the input; None where
            that is so for the tensor's slices alike, see ``constant``.
        need: for each dimension with labels bool (size,): something depends on the slice; None
            where nothing does.
        constant: nothing of the tensor depends on the model's input.
        used: something depends on the tensor.
        slots: where it is stored, for a parameter or buffer; empty for an activation.
        base: the parameter that this tensor is a view of, if any.
        grouped: for the weight of a grouped convolution, its channels.
        unmasked: a parameter whose masks are yet to come: that an element is zero says nothing.
        unseen: dimensions of a parameter whose labels nothing else refers to yet.
        whole: the parameter keeps its size whatever goes; its module sees zeros there.
        scaled: dimensions in which another parameter scales it, so that a mask needs only that one.
        stale: the operator that changed its memory through a view, and what it wrote.
        origin: the call that made it, for reports.
    """

    def __init__(
        self,
        shape: Sequence[int],
        labels: Sequence[Tensor | None] | None = None,
        dead: Sequence[Tensor | None] | None = None,
        *,
        constant: bool = False,
        origin: str = "",
    ) -> None:
        self.shape = tuple(shape)
        self.labels: list[Tensor | None] = list(labels or [None] * len(self.shape))
        self.dead: list[Tensor | None] = list(dead or [None] * len(self.shape))
        self.need: list[Tensor | None] = [None] * len(self.shape)
        self.constant = constant
        self.used = False
        self.slots: list[Slot] = []
        self.base: Tracked | None = None
        self.grouped: Grouped | None = None
        self.whole = False
        self.unmasked = False
        self.unseen: set[int] = set()
        self.scaled: set[int] = set()
        self.stale: tuple[str, list[Tracked]] | None = None
        self.origin = origin

    @property
    def is_unmasked(self) -> bool:
        """Whether masks of it, or of the parameter that it is a view of, are yet to come."""
        return (self.base or self).unmasked

    def dims(self) -> list[int]:
        """Return the dimensions that have labels."""
        return [dim for dim, labels in enumerate(self.labels) if labels is not None]

    def flags(self, dim: int) -> Tensor:
        """Return ``dead`` along ``dim``, also where nothing is noted of its slices."""
        dead = self.dead[dim]
        return torch.full((self.shape[dim],), self.constant) if dead is None else dead

    def flow(self, dim: int) -> Tensor:
        """Return which slices of ``dim`` are needed and not constant: they pass need on."""
        need, dead = self.need[dim], self.dead[dim]
        if self.labels[dim] is None:
            return torch.full((self.shape[dim],), self.used and not self.constant)
        if need is None or (dead is None and self.constant):
            return torch.zeros(self.shape[dim], dtype=torch.bool)
        return need if dead is None else need & ~dead

    def want(self, dim: int, needed: Tensor | bool) -> None:
        """Say that slices of ``dim`` are needed."""
        if self.labels[dim] is None or needed is False:
            return
        need = self.need[dim]
        if needed is True:
            self.need[dim] = torch.ones(self.shape[dim], dtype=torch.bool)
        elif isinstance(needed, Tensor):
            self.need[dim] = needed if need is None else need | needed
