"""What a plan removes of a model: weights, parameters, FLOPs or latency, before anything is run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from engine.attach.wrapper import Wrapper
from engine.pruning import Channels, Group, prune_count
from engine.pruning.budget import prices

#: What a budget may be counted in.
BUDGETS = ("weights", "parameters", "flops", "latency")


class Unit(NamedTuple):
    """Layers that get one sparsity: one layer, or all those that are bound together.

    Attributes:
        name: of the first of its layers; what plans call it.
        wrappers: its layers.
        group: the channels that they share, where whole filters are removed and that is known.
    """

    name: str
    wrappers: tuple[Wrapper, ...]
    group: Group | None

    def channels(self, sparsity: float) -> torch.Tensor | None:
        """Return which shared channels stay, bool (channels,), for counting; None without a group.

        Which of them go is not known before the weights are ranked, how many is.
        """
        if self.group is None:
            return None
        removable = [prune_count(len(owner), sparsity) for owner in self.group.owner]
        return self.group.choose(torch.arange(self.group.count), removable)

    def gone(self, sparsity: float) -> dict[tuple[int, int], int]:
        """Return how many indices go, by the id of a parameter and its dimension."""
        kept = self.channels(sparsity)
        gone: dict[tuple[int, int], int] = {}
        if self.group is None or kept is None:
            return gone
        first = 0
        for block in self.group.blocks:
            mine = ~kept[first : first + block.count]
            first += block.count
            for member in block.members:
                if member.tracked.whole:
                    continue  # a norm that goes on seeing what was removed, as zeros
                place = id(member.tensor), member.dim
                gone[place] = gone.get(place, 0) + int(mine[member.channel].sum())
        return gone

    def removed(self, sparsity: float, filters: bool) -> tuple[int, ...]:
        """Return, by layer, how many of its filters go, or of its weights if not ``filters``."""
        if self.group is not None:
            kept = self.channels(sparsity)
            assert kept is not None
            return tuple(int((~mask).sum()) for mask in self.group.masks(kept))
        counts = [_count(wrapper, filters) for wrapper in self.wrappers]
        return tuple(prune_count(count, sparsity) for count in counts)


class Cost:
    """The fraction of a model that plans remove.

    Args:
        model: the dense model.
        wrappers: the selected layers.
        units: those of them that can lose something, as units.
        budget: one of :data:`BUDGETS`.
        filters: whether whole filters are removed.
        example: positional and keyword arguments of a forward pass, for FLOPs.
        latency: for latency, the time that the model takes under a plan, as a fraction.
    """

    def __init__(
        self,
        model: nn.Module,
        wrappers: Sequence[Wrapper],
        units: Sequence[Unit],
        budget: str,
        *,
        filters: bool,
        example: tuple[Any, Mapping[str, Any] | None],
        latency: Callable[[Mapping[str, float]], float],
    ) -> None:
        self.budget = budget
        self.units = {unit.name: unit for unit in units}
        self._filters = filters
        self._latency = latency
        self._parts: dict[int, _Part] = {}
        #: What goes of each parameter, by unit and numbers of filters: fitting asks over and over.
        self._counted: dict[tuple[str, tuple[int, ...]], dict[tuple[int, int], int]] = {}
        if filters and budget in ("parameters", "flops"):
            self._parts = {
                id(parameter): _Part(tuple(parameter.shape), price)
                for parameter, price in prices(model, budget, *example)
            }
        selected = {id(w.weight): w.weight.numel() for w in wrappers}
        self._whole: float = sum(selected.values())
        if budget == "parameters" and not filters:
            self._whole = sum(p.numel() for p in model.parameters())
        if self._parts:
            self._whole = sum(part.price * math.prod(part.shape) for part in self._parts.values())

    def key(self, plan: Mapping[str, float]) -> str:
        """Return what tells plans apart that remove different numbers of filters or weights."""
        counts = [
            f"{name}:{','.join(map(str, unit.removed(plan.get(name, 0.0), self._filters)))}"
            for name, unit in self.units.items()
        ]
        return ";".join(counts)

    def by_layer(self, plan: Mapping[str, float]) -> dict[str, float]:
        """Return the fraction of its filters or weights that each layer loses under a plan."""
        shares = {}
        for name, unit in self.units.items():
            counts = unit.removed(plan.get(name, 0.0), self._filters)
            for wrapper, count in zip(unit.wrappers, counts, strict=True):
                shares[wrapper.name] = count / _count(wrapper, self._filters)
        return shares

    def removed(self, plan: Mapping[str, float]) -> float:
        """Return the fraction of the whole that goes: of weights, parameters, FLOPs or time."""
        if self.budget == "latency":
            # A model timed against itself takes more or less the same time.
            return 1.0 - self._latency(plan) if self.key(plan) != self.key({}) else 0.0
        if self._parts:
            return 1.0 - self._left(plan) / self._whole
        gone = 0.0
        for name, unit in self.units.items():
            counts = unit.removed(plan.get(name, 0.0), self._filters)
            for wrapper, count in zip(unit.wrappers, counts, strict=True):
                gone += count * wrapper.weight.numel() / _count(wrapper, self._filters)
        return gone / self._whole

    def _left(self, plan: Mapping[str, float]) -> float:
        gone: dict[tuple[int, int], int] = {}
        for name, unit in self.units.items():
            for place, count in self._gone_of(unit, plan.get(name, 0.0)).items():
                gone[place] = gone.get(place, 0) + count
        left = 0.0
        for key, part in self._parts.items():
            sizes = [size - gone.get((key, dim), 0) for dim, size in enumerate(part.shape)]
            left += part.price * math.prod(sizes)
        return left

    def _gone_of(self, unit: Unit, sparsity: float) -> dict[tuple[int, int], int]:
        """Return :meth:`Unit.gone`, counted once for each number of filters that may go."""
        owners = unit.group.owner if unit.group is not None else []
        key = unit.name, tuple(prune_count(len(owner), sparsity) for owner in owners)
        if key not in self._counted:
            self._counted[key] = unit.gone(sparsity)
        return self._counted[key]


class _Part(NamedTuple):
    """One parameter: its shape and what each of its elements costs."""

    shape: tuple[int, ...]
    price: float


def _count(wrapper: Wrapper, filters: bool) -> int:
    return Channels(wrapper.module).count if filters else wrapper.weight.numel()
