"""Which filters and which inputs of which layers are one channel: they go together or stay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import nn

from engine.attach.layout import TRANSPOSED, layout_of
from engine.attach.undisturbed import undisturbed
from engine.speedup import Block, channel_blocks
from engine.user_code.example import call, example_of

#: Layers that scale what passes through them, channel by channel.
NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)

Indices = Mapping[str, tuple[int, ...]]


class BoundChannel(NamedTuple):
    """All that goes when one channel goes, by the layers' names.

    ``outputs`` are filters, numbered as :class:`engine.pruning.Channels` does; ``inputs`` are input
    channels or features. Norms and whatever else follows are left out.
    """

    outputs: Indices
    inputs: Indices


def bound_channels(
    model: nn.Module, args: Any, kwargs: Mapping[str, Any] | None = None
) -> list[list[BoundChannel]]:
    """Return the channels that can be removed, in lists of those that bind the same layers.

    A channel that can never go, such as one of the model's output, is in no list.

    Args:
        model: the model; left as found.
        args: one tensor, a tuple of positional arguments, or the shape of the one input.
        kwargs: keyword arguments.

    Raises:
        EngineError: the model does not run on the example.
    """
    example = example_of(model, args, kwargs)
    with undisturbed(model):
        call(model, example)
        blocks = channel_blocks(model, example.args, example.kwargs)
    return [_channels(block) for block in blocks]


def is_depthwise(module: nn.Module) -> bool:
    """Return whether each filter of ``module`` reads one input channel, which decides its fate."""
    if not isinstance(module, nn.modules.conv._ConvNd) or module.groups == 1:
        return False
    return module.groups == module.in_channels


def _channels(block: Block) -> list[BoundChannel]:
    channels = []
    for parts in block.channels:
        found: tuple[dict[str, tuple[int, ...]], ...] = ({}, {})
        for part in parts:
            for slot in part.tracked.slots:
                place = _place(slot.module, slot.name, part.dim, part.tensor.dim())
                if place is not None:
                    indices = part.indices
                    if place == _OUTPUTS and isinstance(slot.module, TRANSPOSED):
                        indices = _every_group(slot.module, indices)
                    known = found[place].get(slot.path, ())
                    found[place][slot.path] = tuple(dict.fromkeys((*known, *indices)))
        channels.append(BoundChannel(*found))
    return channels


_OUTPUTS, _INPUTS = range(2)


def _place(module: nn.Module, name: str, dim: int, dims: int) -> int | None:
    """Return what a slice along ``dim`` of a parameter is to its layer, None if it only follows."""
    if name not in module._parameters or dims < 2 or isinstance(module, NORMS):
        return None
    layout = layout_of(module)
    if layout is not None and layout.axis == 1:
        dim = 1 - dim if dim < 2 else dim
    # Positions and the like, added to a stream, have their channels further back.
    return {0: _OUTPUTS, 1: _INPUTS}.get(dim)


def _every_group(module: nn.Module, indices: tuple[int, ...]) -> tuple[int, ...]:
    """Return the filters of a transposed convolution whose weight's second dimension has these."""
    groups, weight = module.groups, module._parameters["weight"]
    assert isinstance(groups, int)
    assert weight is not None
    per_group = int(weight.shape[1])
    return tuple(group * per_group + i for i in indices for group in range(groups))
