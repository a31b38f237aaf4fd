"""Pixels from channels and channels from pixels: r x r channels stand for one, next to each other.

Shi et al. 2016, "Real-Time Single Image and Video Super-Resolution Using an Efficient Sub-Pixel
Convolutional Neural Network", arXiv 1609.05158, equation 4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from engine.speedup.records import Back
from engine.speedup.rules.dims import put_like
from engine.speedup.trace import Rule, Trace


def _shuffle(
    trace: Trace, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], output: Tensor
) -> Back | None:
    """(..., C r r, H, W) to (..., C, H r, W r), or back: the r r channels of one go together."""
    joins = func._schema.name == "aten::pixel_shuffle"
    factor = int(args[1] if len(args) > 1 else next(iter(kwargs.values()))) ** 2
    source, channel = trace.of(args[0]), args[0].dim() - 3
    trace.pin(source, "a position, not a channel", [channel + 1, channel + 2])
    kept: list[int | None] = [d if d < channel else None for d in range(args[0].dim())]
    made, rest = put_like(trace, output, args[0], kept)
    labels = source.labels[channel]
    if labels is None:
        return rest
    dead = source.flags(channel)
    if joins:
        trace.labels.unite_rows(labels.view(-1, factor))
        made.labels[channel] = labels[::factor]
        made.dead[channel] = dead.view(-1, factor).all(dim=1)
    else:
        made.labels[channel] = labels.repeat_interleave(factor)
        made.dead[channel] = dead.repeat_interleave(factor)

    def back() -> None:
        if not made.used or made.constant:
            return
        source.used = True
        for d in source.dims():
            if d < channel:
                source.want(d, made.flow(d))
            elif d > channel:
                source.want(d, True)
        flow = made.flow(channel)
        needed = flow.repeat_interleave(factor) if joins else flow.view(-1, factor).any(dim=1)
        source.want(channel, needed)

    return back


RULES: dict[str, Rule] = dict.fromkeys(("pixel_shuffle", "pixel_unshuffle"), _shuffle)
