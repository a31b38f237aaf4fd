"""Operators that put several tensors together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from engine.speedup.labels import FIXED
from engine.speedup.records import Back
from engine.speedup.trace import Rule, Trace
from engine.speedup.tracked import Tracked


def _cat(
    trace: Trace, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], output: Tensor
) -> Back | None:
    tensors = [t for t in args[0] if not (t.dim() == 1 and t.numel() == 0)]
    dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % output.dim()
    sources = [trace.of(t) for t in tensors]
    constant = all(s.constant for s in sources)
    made = Tracked(output.shape, constant=constant)
    for d in range(output.dim()):
        parts = [s.labels[d] for s in sources]
        labelled = [p for p in parts if p is not None]
        if not labelled:
            continue
        if d == dim:
            made.labels[d] = torch.cat(
                [torch.full((s.shape[d],), FIXED) if p is None else p
                 for s, p in zip(sources, parts, strict=True)]
            )  # fmt: skip
            made.dead[d] = torch.cat([s.flags(d) for s in sources])
        else:
            for part in labelled[1:]:
                trace.labels.unite(labelled[0], part)
            if len(labelled) < len(parts):
                trace.labels.pin(labelled[0], "it is concatenated with a tensor of fixed size")
            made.labels[d] = labelled[0]
            made.dead[d] = torch.stack([s.flags(d) for s in sources]).all(dim=0)
    trace.put(output, made)

    def back() -> None:
        if not made.used or made.constant:
            return
        start = 0
        for source in sources:
            stop = start + source.shape[dim]
            mine = made.flow(dim)[start:stop]
            start = stop
            if not bool(mine.any()):
                continue
            source.used = True
            for d in source.dims():
                source.want(d, mine if d == dim else made.flow(d))

    return back


def _stack(
    trace: Trace, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], output: Tensor
) -> Back | None:
    dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % output.dim()
    sources = [trace.of(t) for t in args[0]]
    made = Tracked(output.shape, constant=all(s.constant for s in sources))
    for d in range(output.dim() - 1):
        parts = [s.labels[d] for s in sources]
        labelled = [p for p in parts if p is not None]
        if not labelled:
            continue
        for part in labelled[1:]:
            trace.labels.unite(labelled[0], part)
        if len(labelled) < len(parts):
            trace.labels.pin(labelled[0], "it is stacked with a tensor of fixed size")
        e = d + (d >= dim)
        made.labels[e] = labelled[0]
        made.dead[e] = torch.stack([s.flags(d) for s in sources]).all(dim=0)
    trace.put(output, made)

    def back() -> None:
        if made.used and not made.constant:
            for source in sources:
                source.used = True
                for d in source.dims():
                    source.want(d, made.flow(d + (d >= dim)))

    return back


_Function = Callable[..., Back | None]
_GROUPS: dict[_Function, str] = {_cat: "cat concat", _stack: "stack"}
RULES: dict[str, Rule] = {name: rule for rule, names in _GROUPS.items() for name in names.split()}
