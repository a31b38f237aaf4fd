"""Writes through views: what other tensors of the same memory hold afterwards."""

from __future__ import annotations

import torch
from torch import Tensor

from engine.speedup.records import Call
from engine.speedup.trace import Trace
from engine.speedup.tracked import Tracked


def write(trace: Trace, name: str, tensor: Tensor, written: Tracked) -> bool:
    """See that ``tensor`` now holds, here and there, what was written to a view of its memory.

    What can be removed of either must be the same indices of one dimension of each, as where
    positions are cut out of a tensor and features are left alone.

    Returns:
        whether that is so; else nothing is done.
    """
    seen = trace.of(tensor)
    same: dict[int, int] = {}
    for dim, labels in _free(trace, seen):
        places = [e for e, others in _free(trace, written) if _equal(trace, labels, others)]
        if len(places) != 1:
            return False
        same[dim] = places[0]
    if seen.slots or seen.stale is not None or len(set(same.values())) < len(_free(trace, written)):
        return False
    made = Tracked(seen.shape, seen.labels, constant=seen.constant and written.constant)
    made.base = seen.base
    for dim in seen.dims():
        there = written.flags(same[dim]) if dim in same else torch.tensor(written.constant)
        made.dead[dim] = seen.flags(dim) & there
    trace.put(tensor, made)

    def back() -> None:
        if not made.used:
            return
        seen.used = written.used = True
        for dim in seen.dims():
            seen.want(dim, made.flow(dim) if dim in same else True)
        for dim, e in same.items():
            written.want(e, made.flow(dim))
        for e in written.dims():
            if e not in same.values():
                written.want(e, True)

    trace.calls.append(Call(0, name, trace.path, [seen, written], [made], back))
    return True


def _free(trace: Trace, tracked: Tracked) -> list[tuple[int, Tensor]]:
    """Return the dimensions of which anything may be removed, with their labels."""
    return [
        (dim, labels)
        for dim, labels in enumerate(tracked.labels)
        if labels is not None and not bool(trace.labels.pinned(labels).all())
    ]


def _equal(trace: Trace, one: Tensor, other: Tensor) -> bool:
    roots = trace.labels.roots
    return one.shape == other.shape and torch.equal(roots(one), roots(other))
