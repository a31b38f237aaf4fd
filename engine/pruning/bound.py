"""Channels of several layers that can only be removed together, and which of them to remove."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from engine.attach.wrapper import Wrapper
from engine.pruning.channels import Channels
from engine.pruning.companions import Companion, Source

if TYPE_CHECKING:
    from engine.speedup import Block, Member


class Group:
    """Layers bound together, and the channels that they share.

    Attributes:
        members: the layers' wrappers.
        owner: by member, int64 (filters,): which shared channel each filter makes; -1 where none,
            so that it cannot be removed.
        count: number of shared channels.
        blocks: what goes with the shared channels, which are numbered through the blocks.
        companions: what is masked with them.
    """

    def __init__(self, members: list[Wrapper], owner: list[Tensor], blocks: list[Block]) -> None:
        self.members = members
        self.owner = owner
        self.blocks = blocks
        self.count = sum(block.count for block in blocks)
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
    blocks = []
    for block in channel_blocks(model, args, kwargs):
        filters: dict[int, list[_Made]] = {}
        complete = True
        for member in block.members:
            slot = member.tracked.slots[0]
            place = by_module.get(id(slot.module))
            made = _filters_of(member)
            if place is not None and slot.name == "weight" and made is not None:
                filters.setdefault(place, []).append(made)
            elif member.makes:
                complete = False
        if filters:
            blocks.append(_Filters(block, filters, complete))
    groups = []
    for places, numbers in _connected([set(b.filters) for b in blocks], len(wrappers)):
        mine = [blocks[number] for number in numbers]
        owner = [torch.full((Channels(wrappers[p].module).count,), -1) for p in places]
        first = 0
        for each in mine:
            for place, parts in each.filters.items():
                for made in parts:
                    owner[places.index(place)][made.rows] = first + made.channel
            first += each.block.count
        group = Group([wrappers[p] for p in places], owner, [each.block for each in mine])
        for each in mine:
            if each.complete:
                group.companions += _companions(each, wrappers, by_module)
        groups.append(group)
    return groups


class _Made(NamedTuple):
    """Filters of one layer, int64 (n,), and the block's channel that each makes."""

    rows: Tensor
    channel: Tensor


def _filters_of(member: Member) -> _Made | None:
    """Return the filters that a member of a block is, None if it is none.

    Those of a transposed convolution are counted through its groups, which share a dimension of its
    weight; if each reads one channel, the other dimension counts the groups.
    """
    grouped = member.tracked.grouped
    if grouped is None or not grouped.transposed:
        is_filter = member.makes or member.tensor.dim() == 1
        return _Made(member.indices, member.channel) if is_filter else None
    rows, outputs = member.tensor.shape[:2]
    if member.dim == 1:
        starts = torch.arange(grouped.groups).unsqueeze(1) * outputs
        return _Made((starts + member.indices).flatten(), member.channel.repeat(grouped.groups))
    if rows == grouped.groups:
        within = member.indices.unsqueeze(1) * outputs + torch.arange(outputs)
        return _Made(within.flatten(), member.channel.repeat_interleave(outputs))
    return None


class _Filters(NamedTuple):
    """A block with the filters of wrapped layers in it; ``complete`` if no others make it."""

    block: Block
    filters: dict[int, list[_Made]]
    complete: bool


def _connected(blocks: Sequence[set[int]], count: int) -> list[tuple[list[int], list[int]]]:
    """Return the sets of layers that share blocks, each with its blocks' numbers."""
    parent = list(range(count))

    def find(place: int) -> int:
        while parent[place] != place:
            parent[place] = parent[parent[place]]
            place = parent[place]
        return place

    for places in blocks:
        first, *others = sorted(places)
        for other in others:
            parent[find(other)] = find(first)
    members: dict[int, list[int]] = {}
    for place in range(count):
        members.setdefault(find(place), []).append(place)
    numbers: dict[int, list[int]] = {}
    for number, places in enumerate(blocks):
        numbers.setdefault(find(min(places)), []).append(number)
    return [(members[root], numbers[root]) for root in numbers]


def _companions(
    filters: _Filters, wrappers: Sequence[Wrapper], by_module: Mapping[int, int]
) -> list[Companion]:
    """Return the parameters that only carry a block's channels on, with what makes them."""
    rows: dict[int, Tensor] = {}
    for place, parts in filters.filters.items():
        # Of several filters that make one channel any will do: they are masked together.
        rows[place] = torch.zeros(filters.block.count, dtype=torch.int64)
        for made in parts:
            rows[place][made.channel] = made.rows
    companions = []
    for member in filters.block.members:
        slot = member.tracked.slots[0]
        own = id(slot.module) in by_module and slot.name in ("weight", "bias")
        if own or not member.is_parameter or member.makes or member.reads:
            continue
        sources = [Source(wrappers[p], rows[p][member.channel]) for p in sorted(rows)]
        companions.append(
            Companion(slot.path, slot.module, slot.name, member.dim, member.indices, sources)
        )
    return companions
