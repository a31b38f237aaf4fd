"""Operators that look elements up by index: what is indexed stays, the other dimensions follow."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from engine.speedup.records import Back
from engine.speedup.rules.dims import put_like, together
from engine.speedup.rules.places import along
from engine.speedup.trace import Rule, Trace
from engine.speedup.tracked import Tracked

_REASON = "it is indexed at fixed places"


def _hold(trace: Trace, index: Tensor) -> Tracked:
    """Return what is known of an index, whose values are places and therefore stay."""
    known = trace.of(index)
    trace.pin(known, "it holds places")
    return known


def _index_select(
    trace: Trace, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], output: Tensor
) -> Back | None:
    dim = args[1] % args[0].dim()
    known = _hold(trace, args[2])
    if known.constant:
        return along(trace, output, args[0], dim, args[2].cpu(), _REASON)
    trace.pin(trace.of(args[0]), _REASON, [dim])
    dims: list[int | None] = [d if d != dim else None for d in range(args[0].dim())]
    return _chosen(trace, output, args[0], dims, [known])


def _index(
    trace: Trace, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], output: Tensor
) -> Back | None:
    """``x[i, :, j]``: indexed dimensions become those of the indices, at the first one's place."""
    x, indices = args[0], list(args[1])
    known = [_hold(trace, i) for i in indices if i is not None]
    taken: list[int] = []
    place = 0
    for index in indices:
        width = index.dim() if index is not None and index.dtype == torch.bool else 1
        if index is not None:
            taken.extend(range(place, place + width))
        place += width
    one = next((i for i in indices if i is not None), None)
    if one is None:
        return None
    if len(known) == 1 and known[0].constant and one.dtype != torch.bool and one.dim() == 1:
        places = torch.where(one < 0, one + x.shape[taken[0]], one).cpu()
        return along(trace, output, x, taken[0], places, _REASON)
    source = trace.of(x)
    trace.pin(source, _REASON, taken)
    left = [d for d in range(x.dim()) if d not in taken]
    together = taken == list(range(taken[0], taken[-1] + 1))
    first = taken[0] if together else 0
    dims: list[int | None] = [*left[:first], *[None] * (output.dim() - len(left)), *left[first:]]
    return _chosen(trace, output, x, dims, known)


def _gather(
    trace: Trace, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], output: Tensor
) -> Back | None:
    """Places along one dimension; a slice of another one follows where all get the same places."""
    x, index = args[0], args[2]
    dim = args[1] % x.dim()
    known = _hold(trace, index)
    source = trace.of(x)
    dims: list[int | None] = [None] * x.dim()
    for d in source.dims():
        whole = d != dim and index.shape[d] == x.shape[d]
        if whole and bool((index == index.narrow(d, 0, 1)).all()):
            dims[d] = d
        else:
            trace.pin(source, _REASON, [d])
    return _chosen(trace, output, x, dims, [known])


def _chosen(
    trace: Trace, output: Tensor, x: Tensor, dims: Sequence[int | None], known: Sequence[Tracked]
) -> Back:
    """Make an output of elements of ``x`` that indices choose; its ``dims`` follow those of x."""
    source = trace.of(x)
    made, follow = put_like(trace, output, x, dims)
    made.constant = source.constant and all(each.constant for each in known)
    if not made.constant and source.constant:
        # Which of the constants it is depends on the input, unless all are zero.
        for e in made.dims():
            values = output.detach().movedim(e, 0).reshape(output.shape[e], -1)
            made.dead[e] = made.flags(e) & (values == 0).all(dim=1).cpu()

    def back() -> None:
        follow()
        if made.used:
            source.used = True
            for d in source.dims():
                source.want(d, d not in dims or made.flow(dims.index(d)))
            for each in known:
                each.used = True

    return back


def _ranked(
    trace: Trace, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any
) -> Back | None:
    """Sorted along one dimension, with the places that values had: each other slice by itself."""
    name = func._schema.name.removeprefix("aten::")
    given = list(args[1 + (name in ("topk", "kthvalue")) :])
    dim = given[0] if given and not isinstance(given[0], bool) else kwargs.get("dim", -1)
    if not isinstance(dim, int) or args[0].dim() != output[0].dim():
        return None
    source = trace.of(args[0])
    trace.pin(source, "its order counts", [dim % args[0].dim()])
    dims: list[int | None] = list(range(args[0].dim()))
    return together([put_like(trace, part, args[0], dims)[1] for part in output[:2]])


def _index_add(
    trace: Trace, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], output: Tensor
) -> Back | None:
    """Slices of one dimension are added or copied to slices of another tensor."""
    into, source = trace.of(args[0]), trace.of(args[3])
    dim = args[1] % args[0].dim()
    known = _hold(trace, args[2])
    made = Tracked(output.shape, constant=into.constant and source.constant and known.constant)
    for each in (into, source):
        trace.pin(each, _REASON, [dim])
    for d in range(output.dim()):
        mine, theirs = into.labels[d], source.labels[d]
        if d == dim or (mine is None and theirs is None):
            continue
        if mine is None or theirs is None:
            labels = theirs if mine is None else mine
            assert labels is not None
            trace.labels.pin(labels, "index_add combines it with a tensor of fixed size")
            continue
        trace.labels.unite(mine, theirs)
        made.labels[d] = mine
        zero = args[3].detach().movedim(d, 0).reshape(output.shape[d], -1)
        silent = source.flags(d) & ((zero == 0).all(dim=1).cpu() | known.constant)
        made.dead[d] = into.flags(d) & silent
    trace.put(output, made)

    def back() -> None:
        if made.used:
            for each in (into, source, known):
                each.used = True
            for each in (into, source):
                for d in each.dims():
                    each.want(d, True if d == dim or d not in made.dims() else made.flow(d))

    return back


_Function = Callable[..., Back | None]
_GROUPS: dict[_Function, str] = {
    _index_select: "index_select",
    _index: "index",
    _index_add: "index_add index_copy",
    _gather: "gather",
    _ranked: "topk sort",
}
RULES: dict[str, Rule] = {name: rule for rule, names in _GROUPS.items() for name in names.split()}
