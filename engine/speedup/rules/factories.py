"""Operators that make a tensor out of sizes: initial states, masks, noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from engine.speedup.records import Back
from engine.speedup.trace import Rule, Trace
from engine.speedup.tracked import Tracked


def _factory(
    trace: Trace, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], output: Tensor
) -> Back | None:
    """All slices are alike: the tensor can be made smaller if the code's sizes can."""
    labels = [trace.labels.fresh(n) if n > 1 else None for n in output.shape]
    trace.put(output, Tracked(output.shape, labels, constant=True))
    for dim, mine in enumerate(labels):
        if mine is not None:
            trace.ask(len(mine), mine, dim, output.dim())
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
