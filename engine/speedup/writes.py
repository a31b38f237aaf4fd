"""Writes through views: what other tensors of the same memory hold afterwards."""

from __future__ import annotations

import torch
from torch import Tensor

from engine.speedup.records import Call
from engine.speedup.trace import Trace
from engine.speedup.tracked import Tracked


def write(trace: Trace, name: str, tensor: Tensor, view: Tensor, written: Tracked) -> bool:
    """See that ``tensor`` now holds, here and there, what was written to a view of its memory.

    What can be removed of either must be the same indices of one dimension of each, as where
    positions are cut out of a tensor and features are left alone; or the same elements of memory,
    as where some channels are written to.

    Args:
        trace: what is known of tensors.
        name: the operator.
        tensor: what shares memory with ``view``.
        view: what was written to.
        written: what is known of what was written.

    Returns:
        whether that is so; else nothing is done.
    """
    seen = trace.of(tensor)
    same: dict[int, int] = {}
    for dim, labels in _free(trace, seen):
        places = [e for e, others in _free(trace, written) if _equal(trace, labels, others)]
        if len(places) != 1:
            return _write_elements(trace, name, tensor, view, written)
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


def _write_elements(
    trace: Trace, name: str, tensor: Tensor, view: Tensor, written: Tracked
) -> bool:
    """See what was written element by element, where one dimension of each can lose something."""
    seen = trace.of(tensor)
    ours, theirs = _free(trace, seen), _free(trace, written)
    if seen.slots or seen.stale is not None or len(ours) != 1 or len(theirs) != 1:
        return False
    (dim, labels), (e, others) = ours[0], theirs[0]
    memory = _Memory(tensor, view)
    roots = memory.filled(trace.labels.roots(labels), dim)
    if not torch.equal(roots[memory.view], _spread(trace.labels.roots(others), e, view)):
        return False
    dead = memory.filled(seen.flags(dim), dim)
    dead[memory.view] = _spread(written.flags(e), e, view)
    made = Tracked(seen.shape, seen.labels, constant=seen.constant and written.constant)
    made.base = seen.base
    for d in seen.dims():
        made.dead[d] = seen.flags(d) & torch.tensor(written.constant)
    made.dead[dim] = dead[memory.tensor].movedim(dim, 0).flatten(1).all(dim=1)
    trace.put(tensor, made)

    def back() -> None:
        if not made.used:
            return
        seen.used = written.used = True
        flow = made.flow(dim)
        for d in seen.dims():
            seen.want(d, flow if d == dim else True)
        needed = memory.filled(flow, dim)[memory.view]
        for d in written.dims():
            written.want(d, needed.movedim(e, 0).flatten(1).any(dim=1) if d == e else True)

    trace.calls.append(Call(0, name, trace.path, [seen, written], [made], back))
    return True


class _Memory:
    """Where the elements of two tensors are that share memory, int64 of their shapes."""

    def __init__(self, tensor: Tensor, view: Tensor) -> None:
        size = tensor.untyped_storage().nbytes() // tensor.element_size()
        places = torch.arange(size)
        self.tensor, self.view = (
            places.as_strided(t.shape, t.stride(), t.storage_offset()) for t in (tensor, view)
        )
        self._size = size

    def filled(self, values: Tensor, dim: int) -> Tensor:
        """Return memory of zeros with ``values``, one for each index of the tensor's ``dim``."""
        memory = torch.zeros(self._size, dtype=values.dtype)
        memory[self.tensor] = _spread(values, dim, self.tensor)
        return memory


def _spread(values: Tensor, dim: int, like: Tensor) -> Tensor:
    """Return ``values``, one for each index of ``dim``, expanded to the shape of ``like``."""
    return values.view([-1 if d == dim else 1 for d in range(like.dim())]).expand(like.shape)


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
