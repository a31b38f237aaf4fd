"""Channel dependencies: what of which parameters goes together, before anything is masked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from engine.speedup.rules import RULES
from engine.speedup.shrink import evaluation
from engine.speedup.tracer import Place, Tracer
from engine.speedup.tracked import Tracked

_COLUMNS = (
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Embedding,
    nn.EmbeddingBag,
)
_CONTRACTIONS = (
    nn.modules.conv._ConvNd,
    nn.Linear,
    nn.Bilinear,
    nn.MultiheadAttention,
    nn.RNNBase,
    nn.RNNCellBase,
)


class Slice(NamedTuple):
    """Indices of one dimension of one parameter or buffer."""

    tracked: Tracked
    dim: int
    indices: tuple[int, ...]

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
        return self.dim == (1 if isinstance(self.tracked.slots[0].module, _COLUMNS) else 0)

    @property
    def reads(self) -> bool:
        """Whether a layer reads the channel here: the columns of its weight."""
        slot = self.tracked.slots[0]
        return self.tensor.dim() > 1 and not self.makes and isinstance(slot.module, _CONTRACTIONS)


class Block(NamedTuple):
    """Layers bound together: ``channels[i]`` is all that goes when their i-th channel goes."""

    channels: tuple[tuple[Slice, ...], ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters that the block touches, as ``layer.parameter``."""
        return tuple(
            dict.fromkeys(
                ".".join(filter(None, (s.tracked.slots[0].path, s.tracked.slots[0].name)))
                for s in self.channels[0]
            )
        )


def plan(model: nn.Module, args: Any, kwargs: Mapping[str, Any] | None = None) -> Tracer:
    """Return what is seen of ``model`` when it runs, with the splits that bind the least.

    Where a dimension is split (into heads and head features, channels and positions) any part may
    be what can be removed. If the likeliest one turns out to be bound, the next is tried.
    """
    choices: dict[Place, int] = {}
    positional = tuple(args) if isinstance(args, tuple | list) else (args,)
    while True:
        tracer = Tracer(model, RULES, planning=True, choices=choices)
        with evaluation(model):
            tracer.run(positional, dict(kwargs or {}))
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
    classes: dict[int, dict[tuple[int, int], list[int]]] = {}
    owners: dict[int, Tracked] = {}
    for tracked in tracer.parameters:
        owners[id(tracked)] = tracked
        for dim in tracked.dims():
            labels = tracked.labels[dim]
            assert labels is not None
            if dim in tracked.scaled:
                continue
            if tracked.grouped is not None and dim == (0 if tracked.grouped.transposed else 1):
                continue
            pinned = tracer.labels.pinned(labels)
            for index, root in enumerate(tracer.labels.roots(labels).tolist()):
                if not pinned[index]:
                    classes.setdefault(root, {}).setdefault((id(tracked), dim), []).append(index)
    blocks: dict[frozenset[tuple[int, int]], list[tuple[Slice, ...]]] = {}
    for members in classes.values():
        slices = tuple(Slice(owners[i], d, tuple(x)) for (i, d), x in members.items())
        blocks.setdefault(frozenset(members), []).append(slices)
    return [Block(tuple(channels)) for channels in blocks.values()]
