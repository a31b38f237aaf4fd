"""How much of a model goes with a channel: parameters or FLOPs, counted while channels go."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from engine.pruning.bound import Group
from engine.pruning.costs.count import count_flops_params

if TYPE_CHECKING:
    from engine.speedup import Block

#: What a budget may be counted in.
UNITS = ("parameters", "flops", "filters")


def prices(
    model: nn.Module, unit: str, args: Any, kwargs: Mapping[str, Any] | None
) -> Iterator[tuple[Tensor, float]]:
    """Yield each parameter once, with what one of its elements costs.

    Args:
        model: the dense model.
        unit: one of :data:`UNITS`. A layer's FLOPs are shared among the elements of its weight;
            for all other units each element costs one.
        args: example inputs, for FLOPs.
        kwargs: keyword arguments.
    """
    flops: dict[str, float] = {}
    if unit == "flops":
        counted = count_flops_params(model, args, kwargs)
        flops = {layer.name: layer.flops for layer in counted.layers}
    seen: set[int] = set()
    for path, module in model.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is None or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            price = 1.0
            if unit == "flops":
                price = flops.get(path, 0) / parameter.numel() if name == "weight" else 0.0
            yield parameter, price


class Budget:
    """The parameters or FLOPs of a model, and what is left of them.

    A parameter of shape (out, in, ...) shrinks with both: what a channel costs depends on which
    others went before it. FLOPs are those of a forward pass with the example inputs, each layer's
    in proportion to its weight's elements.

    Args:
        model: the dense model.
        unit: one of :data:`UNITS`.
        args: example inputs, for FLOPs.
        kwargs: keyword arguments.
    """

    def __init__(
        self, model: nn.Module, unit: str, args: Any, kwargs: Mapping[str, Any] | None
    ) -> None:
        self._unit = unit
        self._price: dict[int, float] = {}
        self._total = 0.0
        self._shapes: dict[int, tuple[int, ...]] = {}
        self._of_block: dict[int, list[tuple[int, float, int, list[int]]]] = {}
        for parameter, price in prices(model, unit, args, kwargs):
            self._price[id(parameter)] = price
            self._total += price * parameter.numel()

    def spend(
        self,
        groups: Sequence[Group],
        scores: Sequence[Tensor],
        fraction: float,
        max_layer_sparsity: float,
    ) -> list[Tensor]:
        """Return, by group, which shared channels stay, bool (channels,).

        Args:
            groups: the groups of layers bound together.
            scores: by group, (channels,): the smallest of all go first.
            fraction: how much of the model goes; less where ``max_layer_sparsity`` forbids it.
            max_layer_sparsity: the largest fraction of its filters that a layer may lose.
        """
        kept = [torch.ones(group.count, dtype=torch.bool) for group in groups]
        left: dict[int, list[int]] = {}
        room = [
            torch.tensor([int(len(owner) * max_layer_sparsity + 1e-6) for owner in group.owner])
            for group in groups
        ]
        sizes = [group.sizes for group in groups]
        order = torch.cat(list(scores)).argsort(stable=True).tolist() if scores else []
        places = [(g, c) for g, group in enumerate(groups) for c in range(group.count)]
        filters = sum(len(owner) for group in groups for owner in group.owner)
        wanted = fraction * (filters if self._unit == "filters" else self._total)
        spent = 0.0
        for g, c in (places[i] for i in order):
            if spent >= wanted - 1e-6:
                break
            cost = sizes[g][:, c]
            if bool((cost > room[g]).any()) or int(kept[g].sum()) == 1:
                continue
            room[g] -= cost
            kept[g][c] = False
            spent += (
                float(cost.sum()) if self._unit == "filters" else self._remove(groups[g], c, left)
            )
        return kept

    def _remove(self, group: Group, channel: int, left: dict[int, list[int]]) -> float:
        for block in group.blocks:
            if channel < block.count:
                break
            channel -= block.count
        gone = 0.0
        for key, price, dim, counts in self._parts(block):
            shape = left.setdefault(key, list(self._shapes[key]))
            others = math.prod(n for d, n in enumerate(shape) if d != dim)
            gone += price * counts[channel] * others
            shape[dim] -= counts[channel]
        return gone

    def _parts(self, block: Block) -> list[tuple[int, float, int, list[int]]]:
        """Return by parameter its key, price, dimension and elements for each channel."""
        if id(block) not in self._of_block:
            parts = []
            for member in block.members:
                if member.is_parameter and not member.tracked.whole:
                    tensor = member.tensor
                    self._shapes[id(tensor)] = tuple(tensor.shape)
                    counts = torch.bincount(member.channel, minlength=block.count).tolist()
                    price = self._price.get(id(tensor), 0.0)
                    parts.append((id(tensor), price, member.dim, counts))
            self._of_block[id(block)] = parts
        return self._of_block[id(block)]
