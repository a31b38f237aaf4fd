"""Channels of several layers that can only be removed together, and which of them to remove."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from engine.pruning.channels import Channels
from engine.pruning.companions import Companion, Source
from engine.wrapper import Wrapper

if TYPE_CHECKING:
    from engine.speedup import Slice


class Group:
    """Layers bound together, and the channels that they share.

    Attributes:
        members: the layers' wrappers.
        owner: by member, int64 (filters,): which shared channel each filter makes; -1 where none,
            so that it cannot be removed.
        count: number of shared channels.
        parts: by shared channel, all slices of parameters that go with it.
        companions: what is masked with them.
    """

    def __init__(
        self, members: list[Wrapper], owner: list[Tensor], parts: list[tuple[Slice, ...]]
    ) -> None:
        self.members = members
        self.owner = owner
        self.parts = parts
        self.count = len(parts)
        self.companions: list[Companion] = []

    @property
    def sizes(self) -> Tensor:
        """How many filters each shared channel has in each layer, int64 (members, channels)."""
        return torch.stack(
            [torch.bincount(owner[owner >= 0], minlength=self.count) for owner in self.owner]
        )

    def scores(self, importance: Sequence[Tensor]) -> Tensor:
        """Return the sum of the filters' importance per shared channel, float64 (count,).

        Args:
            importance: by member, (filters,).
        """
        total = torch.zeros(self.count, dtype=torch.float64)
        for owner, scores in zip(self.owner, importance, strict=True):
            inside = owner >= 0
            total.index_add_(0, owner[inside], scores.cpu().double()[inside])
        return total

    def choose(self, scores: Tensor, removable: Sequence[int], round_to: int = 1) -> Tensor:
        """Return which shared channels stay, bool (count,): no layer loses more than it may.

        Args:
            scores: (count,), those with the smallest go first.
            removable: by member, how many filters may go.
            round_to: as many filters as are kept in each layer is a multiple of it, if possible.
        """
        sizes = self.sizes
        allowed = torch.tensor(
            [
                _rounded(len(owner), count, round_to)
                for owner, count in zip(self.owner, removable, strict=True)
            ]
        )
        kept = torch.ones(self.count, dtype=torch.bool)
        order = scores.argsort(stable=True)
        if bool((sizes == sizes[:, :1]).all()) and bool((sizes[:, 0] > 0).all()):
            most = int((allowed // sizes[:, 0]).min())
            kept[order[: min(most, self.count - 1)]] = False
            return kept
        for channel in order[:-1].tolist():
            if bool((sizes[:, channel] <= allowed).all()):
                allowed -= sizes[:, channel]
                kept[channel] = False
        return kept

    def masks(self, kept: Tensor) -> list[Tensor]:
        """Return, by member, which filters stay, bool (filters,)."""
        return [torch.where(owner >= 0, kept[owner.clamp(min=0)], True) for owner in self.owner]


def _rounded(count: int, removed: int, round_to: int) -> int:
    kept = -(-(count - removed) // round_to) * round_to
    return max(0, count - kept)


def bound_groups(
    model: nn.Module, wrappers: Sequence[Wrapper], args: Any, kwargs: Mapping[str, Any] | None
) -> list[Group]:
    """Return the groups of layers whose filters go together.

    Args:
        model: the model, before masks.
        wrappers: the layers that masks are made for.
        args: example inputs: one tensor, or a tuple of positional arguments.
        kwargs: keyword arguments.

    Raises:
        EngineError: the model does not run on the example inputs.
    """
    from engine.speedup import channel_blocks

    by_module = {id(w.module): place for place, w in reversed(list(enumerate(wrappers)))}
    channels = [
        channel for block in channel_blocks(model, args, kwargs) for channel in block.channels
    ]
    filters: list[dict[int, list[int]]] = []
    whole: list[bool] = []
    for channel in channels:
        mine: dict[int, list[int]] = {}
        complete = True
        for part in channel:
            slot = part.tracked.slots[0]
            place = by_module.get(id(slot.module))
            if (
                place is not None
                and slot.name == "weight"
                and (part.makes or part.tensor.dim() == 1)
            ):
                mine.setdefault(place, []).extend(part.indices)
            elif part.makes:
                complete = False
        filters.append(mine)
        whole.append(complete)
    groups = []
    for places, numbers in _connected(filters, len(wrappers)):
        local = {number: i for i, number in enumerate(numbers)}
        owner = [torch.full((Channels(wrappers[p].module).count,), -1) for p in places]
        for number in numbers:
            for place, rows in filters[number].items():
                owner[places.index(place)][rows] = local[number]
        group = Group([wrappers[p] for p in places], owner, [channels[n] for n in numbers])
        complete_ones = [number for number in numbers if whole[number]]
        group.companions = _companions(
            [(filters[n], channels[n]) for n in complete_ones], wrappers, by_module
        )
        groups.append(group)
    return groups


def _connected(
    filters: Sequence[Mapping[int, Any]], count: int
) -> list[tuple[list[int], list[int]]]:
    """Return the sets of layers that share channels, each with its channels."""
    parent = list(range(count))

    def find(place: int) -> int:
        while parent[place] != place:
            parent[place] = parent[parent[place]]
            place = parent[place]
        return place

    for mine in filters:
        first, *others = sorted(mine) or [-1]
        for other in others:
            parent[find(other)] = find(first)
    members: dict[int, list[int]] = {}
    for place in range(count):
        members.setdefault(find(place), []).append(place)
    numbers: dict[int, list[int]] = {}
    for number, mine in enumerate(filters):
        if mine:
            numbers.setdefault(find(min(mine)), []).append(number)
    return [(members[root], numbers[root]) for root in numbers]


def _companions(
    channels: Sequence[tuple[Mapping[int, list[int]], Any]],
    wrappers: Sequence[Wrapper],
    by_module: Mapping[int, int],
) -> list[Companion]:
    """Return the parameters that only carry these channels on, with what makes each element."""
    found: dict[tuple[int, str, int], tuple[Any, list[int], list[Mapping[int, list[int]]]]] = {}
    for mine, channel in channels:
        for part in channel:
            slot = part.tracked.slots[0]
            own = id(slot.module) in by_module and slot.name in ("weight", "bias")
            if own or not part.is_parameter or part.makes or part.reads:
                continue
            key = (id(slot.module), slot.name, part.dim)
            _, places, makers = found.setdefault(key, (slot, [], []))
            places.extend(part.indices)
            makers.extend([mine] * len(part.indices))
    companions = []
    for (_, name, dim), (slot, places, makers) in found.items():
        used = sorted({place for mine in makers for place in mine})
        if any(set(mine) != set(used) for mine in makers):
            continue
        sources = [Source(wrappers[p], torch.tensor([mine[p][0] for mine in makers])) for p in used]
        companions.append(
            Companion(slot.path, slot.module, name, dim, torch.tensor(places), sources)
        )
    return companions
