"""Channel dependencies: what of which parameters goes together, before anything is masked."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from engine.attach.layout import layout_of
from engine.speedup.compare import copied
from engine.speedup.evaluation import evaluation
from engine.speedup.guesses import Guesses
from engine.speedup.records import Place
from engine.speedup.rules import RULES
from engine.speedup.shrink import refuse_compiled
from engine.speedup.tracer import Tracer
from engine.speedup.tracked import Grouped, Tracked

_CONTRACTIONS = (
    nn.modules.conv._ConvNd,
    nn.Linear,
    nn.Bilinear,
    nn.MultiheadAttention,
    nn.RNNBase,
    nn.RNNCellBase,
)


class Part:
    """One dimension of one parameter or buffer."""

    tracked: Tracked
    dim: int

    @property
    def tensor(self) -> Tensor:
        """The parameter or buffer itself."""
        slot = self.tracked.slots[0]
        module = slot.module
        holder = module._parameters if slot.name in module._parameters else module._buffers
        held: Tensor | None = holder[slot.name]
        assert held is not None
        return held

    @property
    def is_parameter(self) -> bool:
        """Whether it is a parameter, not a buffer."""
        slot = self.tracked.slots[0]
        return slot.name in slot.module._parameters

    @property
    def makes(self) -> bool:
        """Whether these are filters: what computes the channel, not what reads or scales it."""
        if self.tensor.dim() < 2:
            return False
        slot = self.tracked.slots[0]
        layout = layout_of(slot.module) if slot.name == "weight" else None
        return self.dim == (0 if layout is None else layout.axis)

    @property
    def reads(self) -> bool:
        """Whether a layer reads the channel here: the columns of its weight."""
        slot = self.tracked.slots[0]
        known = isinstance(slot.module, _CONTRACTIONS) or layout_of(slot.module) is not None
        return self.tensor.dim() > 1 and not self.makes and known


class Slice(Part):
    """Indices of one dimension of one parameter or buffer."""

    def __init__(self, tracked: Tracked, dim: int, indices: tuple[int, ...]) -> None:
        self.tracked = tracked
        self.dim = dim
        self.indices = indices


class Member(Part):
    """What a block has of one dimension of one parameter or buffer.

    Attributes:
        indices: int64 (n,), the indices along ``dim``.
        channel: int64 (n,), the block's channel that each belongs to.
    """

    def __init__(self, tracked: Tracked, dim: int, indices: Tensor, channel: Tensor) -> None:
        self.tracked = tracked
        self.dim = dim
        self.indices = indices
        self.channel = channel


class Block:
    """Layers bound together.

    Attributes:
        members: what of which parameters and buffers goes with the channels.
        count: the number of channels.
    """

    def __init__(self, members: list[Member], count: int) -> None:
        self.members = members
        self.count = count

    @cached_property
    def channels(self) -> tuple[tuple[Slice, ...], ...]:
        """``channels[i]`` is all that goes when the i-th channel goes."""
        channels: list[list[Slice]] = [[] for _ in range(self.count)]
        for member in self.members:
            order = member.channel.argsort(stable=True)
            sizes = torch.bincount(member.channel, minlength=self.count).tolist()
            for place, indices in enumerate(member.indices[order].split(sizes)):
                if len(indices):
                    part = Slice(member.tracked, member.dim, tuple(indices.tolist()))
                    channels[place].append(part)
        return tuple(map(tuple, channels))

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters that the block touches, as ``layer.parameter``."""
        return tuple(
            dict.fromkeys(
                ".".join(filter(None, (m.tracked.slots[0].path, m.tracked.slots[0].name)))
                for m in self.members
            )
        )


def plan(model: nn.Module, args: Any, kwargs: Mapping[str, Any] | None = None) -> Tracer:
    """Return what is seen of ``model`` when it runs, with the splits that bind the least.

    Where a dimension is split (into heads and head features, channels and positions) any part may
    be what can be removed. If the likeliest one turns out to be bound, the next is tried.
    """
    refuse_compiled(model)
    choices: dict[Place, int] = {}
    positional = tuple(args) if isinstance(args, tuple | list) else (args,)
    guesses: Guesses | None = Guesses()
    while True:
        tracer = Tracer(model, RULES, planning=True, choices=choices, guesses=guesses)
        try:
            with evaluation(model):
                tracer.run(*copied((positional, dict(kwargs or {}))))
        except Exception:
            if guesses is None:
                raise
            guesses.failed = True
        if guesses is not None and guesses.failed:
            guesses = None  # values decide something: all is computed
            continue
        bound = [
            split
            for split in tracer.splits
            if split.chosen + 1 < len(split.candidates)
            and bool(tracer.labels.pinned(split.labels).all())
        ]
        if not bound:
            return tracer
        choices |= {split.place: split.chosen + 1 for split in bound}


def channel_blocks(
    model: nn.Module, args: Any, kwargs: Mapping[str, Any] | None = None
) -> list[Block]:
    """Return the channels of ``model`` that can be removed, by the layers they bind together.

    Args:
        model: the model; unchanged.
        args: example inputs: one tensor, or a tuple of positional arguments.
        kwargs: keyword arguments.
    """
    tracer = plan(model, args, kwargs)
    sides: list[tuple[Tracked, int, Tensor]] = []
    for tracked in tracer.parameters:
        grouped = tracked.grouped
        for dim in tracked.dims():
            labels = tracked.labels[dim]
            assert labels is not None
            if grouped is not None:
                labels = _of_grouped(tracer, grouped, dim, labels)
            if dim not in tracked.scaled and labels is not None:
                sides.append((tracked, dim, labels))
    if not sides:
        return []
    # One row for each index that can go: its label's class, the side it is on, the index.
    labels = torch.cat([labels for *_, labels in sides])
    sizes = torch.tensor([len(labels) for *_, labels in sides])
    side = torch.arange(len(sides)).repeat_interleave(sizes)
    index = torch.cat([torch.arange(size) for size in sizes.tolist()])
    free = ~tracer.labels.pinned(labels)
    side, index = side[free], index[free]
    classes, of_class = tracer.labels.roots(labels)[free].unique(return_inverse=True)
    # A block is the classes that are on the same sides: told by the sum of random numbers.
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randint(1 << 62, (len(sides),), generator=generator)
    pairs = (of_class * len(sides) + side).unique()
    signature = torch.zeros(len(classes), dtype=torch.int64)
    signature.index_add_(0, pairs // len(sides), numbers[pairs % len(sides)])
    _, block_of_class = signature.unique(return_inverse=True)
    counts = torch.bincount(block_of_class)
    rank = _rank_within(block_of_class)
    # Members: the rows of one side and one block.
    number = side * len(counts) + block_of_class[of_class]
    order = number.argsort(stable=True)
    numbers, sizes = number[order].unique_consecutive(return_counts=True)
    parts = (t[order].split(sizes.tolist()) for t in (index, rank[of_class]))
    members: dict[int, list[Member]] = {}
    for here, indices, channel in zip(numbers.tolist(), *parts, strict=True):
        tracked, dim, _ = sides[here // len(counts)]
        member = Member(tracked, dim, indices, channel)
        members.setdefault(here % len(counts), []).append(member)
    return [Block(members[block], int(counts[block])) for block in members]


def _of_grouped(tracer: Tracer, grouped: Grouped, dim: int, own: Tensor) -> Tensor | None:
    """Return the labels of a dimension of a grouped convolution's weight, None where none can go.

    The groups share the second: what a group reads, or of a transposed one what it makes. It
    shrinks where each of them loses the same, which is certain only if all go together. The first
    counts the channels of all groups.
    """
    if dim != 1:
        return grouped.inputs if grouped.transposed else own
    shared = grouped.outputs if grouped.transposed else grouped.inputs
    if shared is None:
        return None
    by_group = tracer.labels.roots(shared).view(grouped.groups, -1)
    return by_group[0] if bool((by_group == by_group[0]).all()) else None


def _rank_within(groups: Tensor) -> Tensor:
    """Return, for each element, how many elements of its group are before it."""
    order = groups.argsort(stable=True)
    counts = torch.bincount(groups)
    starts = counts.cumsum(0) - counts
    rank = torch.empty_like(groups)
    rank[order] = torch.arange(len(groups)) - starts[groups[order]]
    return rank
