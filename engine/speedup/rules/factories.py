"""Operators that make a tensor out of sizes: initial states, masks, noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from engine.speedup.records import Back, Rule
from engine.speedup.tracer import Tracer
from engine.speedup.tracked import Tracked


def _factory(
    tracer: Tracer, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], output: Tensor
) -> Back | None:
    """All slices are alike: the tensor can be made smaller if the code's sizes can."""
    labels = [tracer.labels.fresh(n) if n > 1 else None for n in output.shape]
    tracer.put(output, Tracked(output.shape, labels, constant=True))
    for dim, mine in enumerate(labels):
        if mine is not None:
            tracer.ask(len(mine), mine, dim, output.dim())
    return lambda: None


_NAMES = [
    "zeros",
    "ones",
    "empty",
    "full",
    "new_zeros",
    "new_ones",
    "new_empty",
    "new_full",
    "empty_strided",
    "new_empty_strided",
]
RULES: dict[str, Rule] = dict.fromkeys(_NAMES, _factory)
