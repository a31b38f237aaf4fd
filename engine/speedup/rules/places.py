"""Operators that take some indices of one dimension, or all in another order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from engine.speedup.labels import FIXED
from engine.speedup.records import Back
from engine.speedup.rules.dims import put_like, together
from engine.speedup.tags import Tagged
from engine.speedup.trace import Rule, Trace
from engine.speedup.tracked import Tracked
from engine.speedup.zeros import zero_slices


def along(trace: Trace, tensor: Tensor, of: Tensor, dim: int, index: Tensor, reason: str) -> Back:
    """Make an output that takes ``index`` (-1: a constant) of the input's ``dim``, rest alike."""
    source = trace.of(of)
    dims: list[int | None] = [d if d != dim else None for d in range(len(source.shape))]
    made, _ = put_like(trace, tensor, of, dims)
    labels = source.labels[dim]
    if labels is not None:
        inside = index >= 0
        picked = torch.where(inside, labels[index.clamp(min=0)], FIXED)
        made.labels[dim] = picked
        made.dead[dim] = torch.where(inside, source.flags(dim)[index.clamp(min=0)], True)
        if reason:
            trace.labels.pin(labels, reason)

    def back() -> None:
        rest_dims = [d for d in source.dims() if d != dim]
        if not made.used or made.constant:
            return
        source.used = True
        for d in rest_dims:
            source.want(d, made.flow(d))
        need = torch.zeros(source.shape[dim], dtype=torch.bool)
        flow = made.flow(dim)
        need[index[(index >= 0) & flow]] = True
        source.want(dim, need)

    return back


def _slice(
    trace: Trace, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], output: Tensor
) -> Back | None:
    given = list(args[1:]) + [None] * 4
    dim = (given[0] or 0) % args[0].dim()
    size = args[0].shape[dim]
    index = torch.arange(size)[slice(given[1], given[2], given[3])]
    # A slice of everything is none: it stays right when channels go.
    follows = len(index) == size or _follows(trace, trace.of(args[0]).labels[dim], given[1:4])
    reason = "" if follows else "it is sliced at fixed places"
    return along(trace, output, args[0], dim, index, reason)


def _follows(trace: Trace, labels: Tensor | None, given: Sequence[Any]) -> bool:
    """Return whether each end of a slice is open or an attribute, which follows the channels."""
    start, stop, step = given
    if labels is None or step not in (None, 1):
        return False
    size = len(labels)
    begin, end = start or 0, size if stop is None else stop
    if not 0 <= begin <= end:
        return False
    found = [
        (first, last)
        for first, last in trace.bounds()
        if (first or 0) == begin and min(size if last is None else last, size) == min(end, size)
    ]
    if len(found) != 1:
        return False
    ends = [
        bound
        for bound, is_open in zip(found[0], (begin == 0, end >= size), strict=True)
        if not is_open
    ]
    owners = [bound.owner for bound in ends if isinstance(bound, Tagged)]
    if len(owners) < len(ends):
        return False
    for owner, bound in zip(owners, ends, strict=True):
        trace.follow(owner, labels[:bound])
    return True


def _split(
    trace: Trace, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any
) -> Back | None:
    dim = (args[2] if len(args) > 2 else kwargs.get("dim", 0)) % args[0].dim()
    source = trace.of(args[0])
    sizes = [t.shape[dim] for t in output]
    labels = source.labels[dim]
    if labels is not None and len(sizes) > 1:
        parts = labels.split(sizes)
        owners = [trace.owner(size, i, len(sizes)) for i, size in enumerate(sizes)]
        listed = func._schema.name == "aten::split_with_sizes"
        if listed and len(set(owners)) == len(owners) and None not in owners:
            # Each part's size is an attribute of its own: the parts may lose different numbers.
            for i, part in enumerate(parts):
                trace.ask(len(part), part, i, len(parts))
        elif len(set(sizes)) == 1:
            # chunk() and split(size // n) follow the size when all parts lose the same indices.
            for part in parts[1:]:
                trace.labels.unite(parts[0], part)
            trace.ask(sizes[0], parts[0], 0, args[0].dim())
        elif not trace.replaceable:
            trace.labels.pin(labels, "it is split at fixed places")
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return together(
        [
            along(trace, t, args[0], dim, torch.arange(start, start + size), "")
            for t, start, size in zip(output, starts, sizes, strict=True)
        ]
    )


def _flip(
    trace: Trace, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], output: Tensor
) -> Back | None:
    source = trace.of(args[0])
    moved = [d % args[0].dim() for d in args[1]]
    labelled = [d for d in source.dims() if d in moved]
    if len(labelled) == 1:
        dim = labelled[0]
        return along(trace, output, args[0], dim, torch.arange(args[0].shape[dim]).flip(0), "")
    trace.pin(source, "it is flipped in several dimensions", labelled)
    return put_like(trace, output, args[0], list(range(args[0].dim())))[1]


def _roll(
    trace: Trace, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], output: Tensor
) -> Back | None:
    """Places move around; what passes the end stays, since the code says how much that is."""
    source, rank = trace.of(args[0]), args[0].dim()
    dims = [d % rank for d in (args[2] if len(args) > 2 else [])]
    labelled = [d for d in source.dims() if d in dims or not dims]
    if len(labelled) != 1 or not dims:
        trace.pin(source, "it is rolled in several dimensions", labelled)
        return put_like(trace, output, args[0], list(range(rank)))[1]
    dim, size = labelled[0], args[0].shape[labelled[0]]
    shift = sum(by for by, d in zip(args[1], dims, strict=True) if d == dim)
    labels = source.labels[dim]
    assert labels is not None
    if abs(shift) >= size:
        trace.labels.pin(labels, "it is rolled by more than its size")
    elif shift:
        passing = labels[-shift:] if shift > 0 else labels[:-shift]
        trace.labels.pin(passing, "it is rolled past the end")
    index = torch.arange(size).roll(shift)
    return along(trace, output, args[0], dim, index, "")


def _pad(
    trace: Trace, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], output: Tensor
) -> Back | None:
    source, pads = trace.of(args[0]), list(args[1])
    rank = args[0].dim()
    padded = {rank - 1 - i: (pads[2 * i], pads[2 * i + 1]) for i in range(len(pads) // 2)}
    touched = [d for d in source.dims() if padded.get(d, (0, 0)) != (0, 0)]
    if len(touched) > 1 or any(min(padded[d]) < 0 for d in touched):
        return None
    if touched:
        before, after = padded[touched[0]]
        index = torch.arange(args[0].shape[touched[0]])
        index = torch.nn.functional.pad(index, (before, after), value=-1)
        return along(trace, output, args[0], touched[0], index, "")
    return put_like(trace, output, args[0], list(range(rank)))[1]


def _glu(
    trace: Trace, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], output: Tensor
) -> Back | None:
    """a * sigmoid(b) of the two halves: i-th channels go together; a zero in a is a zero."""
    source = trace.of(args[0])
    dim = (args[1] if len(args) > 1 else -1) % args[0].dim()
    half = args[0].shape[dim] // 2
    labels = source.labels[dim]
    made, back = put_like(
        trace, output, args[0], [d if d != dim else None for d in range(args[0].dim())]
    )
    if labels is None:
        return back
    trace.labels.unite(labels[:half], labels[half:])
    zero = zero_slices(args[0], source, dim)[:half]
    dead = source.flags(dim)
    made.labels[dim] = labels[:half]
    made.dead[dim] = zero | (dead[:half] & dead[half:])

    def also() -> None:
        if made.used and not made.constant:
            source.used = True
            flow = made.flow(dim)
            source.want(dim, torch.cat([flow, flow]))
            for d in source.dims():
                if d != dim:
                    source.want(d, made.flow(d))

    return also


def _pack(
    trace: Trace, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any
) -> Back | None:
    """Packed sequences: positions are rearranged, features are not."""
    data, sizes = output
    trace.pin(trace.of(args[0]), "a position, not a channel", [0, 1])
    trace.put(sizes, Tracked(sizes.shape, constant=True))
    return put_like(trace, data, args[0], [None, *range(2, args[0].dim())])[1]


_Function = Callable[..., Back | None]
_GROUPS: dict[_Function, str] = {
    _slice: "slice",
    _split: "split split_with_sizes chunk tensor_split unsafe_split unsafe_chunk",
    _flip: "flip",
    _roll: "roll",
    _pad: "constant_pad_nd",
    _glu: "glu",
    _pack: "_pack_padded_sequence",
}
RULES: dict[str, Rule] = {name: rule for rule, names in _GROUPS.items() for name in names.split()}
