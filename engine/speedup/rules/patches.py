"""Operators that rearrange channels together with positions: unfold, fold, channel shuffle."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from engine.speedup.records import Back
from engine.speedup.rules.places import along
from engine.speedup.trace import Rule, Trace
from engine.speedup.tracked import Tracked


def _im2col(
    trace: Trace, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], output: Tensor
) -> Back | None:
    """(batch, channels, height, width) -> (batch, channels * kernel, positions)."""
    source = trace.of(args[0])
    trace.pin(source, "a position, not a channel", [0, 2, 3])
    channels = args[0].shape[1]
    return _channels(
        trace,
        output,
        source,
        torch.arange(channels).repeat_interleave(output.shape[1] // channels),
    )


def _channels(trace: Trace, output: Tensor, source: Tracked, index: Tensor) -> Back:
    made = Tracked(output.shape, constant=source.constant)
    labels = source.labels[1]
    if labels is not None:
        made.labels[1], made.dead[1] = labels[index], source.flags(1)[index]
    trace.put(output, made)

    def back() -> None:
        if made.used and not made.constant:
            source.used = True
            need = torch.zeros(source.shape[1], dtype=torch.bool)
            need[index[made.flow(1)]] = True
            source.want(1, need)

    return back


def _col2im(
    trace: Trace, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], output: Tensor
) -> Back | None:
    """(batch, channels * kernel, positions) -> (batch, channels, height, width)."""
    source = trace.of(args[0])
    trace.pin(source, "a position, not a channel", [0, 2])
    made = Tracked(output.shape, constant=source.constant)
    labels = source.labels[1]
    if labels is not None:
        grid = labels.view(output.shape[1], -1)
        trace.labels.unite_rows(grid)
        made.labels[1] = grid[:, 0]
        made.dead[1] = source.flags(1).view(grid.shape).all(dim=1)
    trace.put(output, made)

    def back() -> None:
        if made.used and not made.constant:
            source.used = True
            kernel = source.shape[1] // output_channels
            source.want(1, made.flow(1).repeat_interleave(kernel))

    output_channels = output.shape[1]
    return back


def _channel_shuffle(
    trace: Trace, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], output: Tensor
) -> Back | None:
    """Channels (groups, n) become (n, groups): each group loses the same ones."""
    source, groups = trace.of(args[0]), args[1]
    labels = source.labels[1]
    order = torch.arange(args[0].shape[1]).view(groups, -1)
    if labels is not None:
        for row in order[1:]:
            trace.labels.unite(labels[order[0]], labels[row])
    return along(trace, output, args[0], 1, order.t().flatten(), "")


_Function = Callable[..., Back | None]
_GROUPS: dict[_Function, str] = {
    _im2col: "im2col",
    _col2im: "col2im",
    _channel_shuffle: "channel_shuffle native_channel_shuffle",
}
RULES: dict[str, Rule] = {name: rule for rule, names in _GROUPS.items() for name in names.split()}
