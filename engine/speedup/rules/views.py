"""Views: dimensions are split and merged."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from engine.speedup.records import Back
from engine.speedup.trace import Rule, Trace
from engine.speedup.tracked import Tracked


def chunks(old: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Return the smallest groups of dimensions of equal size that a view maps to each other."""
    result: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(old) or j < len(new):
        left, right = [], []
        a = b = 1
        if i < len(old):
            left.append(i)
            a, i = old[i], i + 1
        if j < len(new):
            right.append(j)
            b, j = new[j], j + 1
        while a != b:
            if a < b:
                left.append(i)
                a, i = a * old[i], i + 1
            else:
                right.append(j)
                b, j = b * new[j], j + 1
        result.append((left, right))
    return result


def _view(
    trace: Trace, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], output: Tensor
) -> Back | None:
    """Split and merge dimensions; a split keeps rows or columns whole, whichever loses less."""
    source = trace.of(args[0])
    made = Tracked(output.shape, constant=source.constant)
    made.base = source.base or (source if source.slots else None)
    if output.numel() == 0:
        return None
    asked = args[1] if len(args) > 1 and isinstance(args[1], list | tuple) else ()
    alike: list[tuple[int, int]] = []
    moves: list[tuple[int, int | None, Tensor, list[int]]] = []
    for left, right in chunks(source.shape, output.shape):
        labelled = [d for d in left if source.labels[d] is not None]
        if labelled and len(left) == len(right) == 1:
            alike.append((left[0], right[0]))
            made.labels[right[0]], made.dead[right[0]] = (
                source.labels[left[0]],
                source.dead[left[0]],
            )
            if len(asked) == output.dim() and asked[right[0]] != -1:
                labels = source.labels[left[0]]
                assert labels is not None
                trace.ask(source.shape[left[0]], labels, right[0], output.dim())
            continue
        if len(labelled) > 1:
            most = max(labelled, key=lambda d: _promise(trace, source, d))
            for d in labelled:
                if d != most:
                    trace.pin(source, "it is merged with another dimension", [d])
                    moves.append((d, None, torch.empty(0), right))
            labelled = [most]
        for d in labelled:
            inner = math.prod(source.shape[k] for k in left if k > d)
            places = torch.arange(math.prod(source.shape[k] for k in left))
            index = (places // inner % source.shape[d]).view([output.shape[e] for e in right])
            e = _settle(trace, source, d, index, right)
            moves.append((d, None if e is None else right[e], index, right))
            if e is None:
                continue
            grid = index.movedim(e, 0).reshape(index.shape[e], -1)
            labels = source.labels[d]
            assert labels is not None
            made.labels[right[e]] = labels[grid[:, 0]]
            made.dead[right[e]] = source.flags(d)[grid].all(dim=1)
            if len(right) > 1 or (len(asked) == output.dim() and asked[right[e]] != -1):
                trace.ask(len(grid), labels[grid[:, 0]], right[e], output.dim())
    trace.put(output, made)
    trace.aliases.add(output, args[0])

    def back() -> None:
        if not made.used or made.constant:
            return
        source.used = True
        for d, same in alike:
            source.want(d, made.flow(same))
        for d, e, index, within in moves:
            if e is None:
                source.want(d, True)
                continue
            shape = [1] * len(within)
            shape[within.index(e)] = -1
            flow = made.flow(e).view(shape).expand(index.shape)
            need = torch.zeros(source.shape[d], dtype=torch.bool)
            need[index[flow]] = True
            source.want(d, need)

    return back


def _promise(trace: Trace, source: Tracked, dim: int) -> tuple[bool, int, bool, int]:
    """Return how much speaks for a dimension that is merged with others, to be compared.

    What must stay in any case takes nothing from the others, and copies (queries that share keys)
    are left to what they are copies of, since that has weights.
    """
    labels = trace.labels.roots(source.labels[dim])  # type: ignore[arg-type]
    free = not bool(trace.labels.pinned(labels).all())
    copies = int(labels[0]) in trace.copies
    return free, int(source.flags(dim).sum()), not copies, source.shape[dim]


def _settle(
    trace: Trace, source: Tracked, dim: int, index: Tensor, right: Sequence[int]
) -> int | None:
    """Return which new dimension carries the labels, having united what goes with it."""
    labels, dead = source.labels[dim], source.flags(dim)
    assert labels is not None
    if not right:
        return None
    roots = trace.labels.roots(labels)[index]
    lost: dict[int, int] = {}
    for e, size in enumerate(index.shape):
        if size == 1:
            continue
        rows = roots.movedim(e, 0).reshape(size, -1)
        if bool((rows == rows[:, :1]).all()):
            return e
        gone = dead[index].movedim(e, 0).reshape(size, -1).all(dim=1)
        lost[e] = int(gone.sum()) * rows.shape[1]
    if not lost:
        trace.labels.pin(labels, "it becomes a dimension of size one")
        return None
    best = max(lost, key=lambda e: lost[e])
    if not lost[best]:
        candidates = _preferred(index, list(lost))
        module = trace.running
        if trace.replaceable and len(labels) == 3 * module.__dict__.get("embed_dim", 0):
            candidates.reverse()  # queries, keys and values: it takes them apart
        best = trace.choose(dim, labels, candidates)
    trace.labels.unite_rows(labels[index.movedim(best, 0).reshape(index.shape[best], -1)])
    return best


def _preferred(index: Tensor, candidates: list[int]) -> list[int]:
    """Return the dimensions that may carry the labels, the most likely first.

    Heads rather than head features or the three of a fused qkv; then what is largest.
    """
    first = min(candidates, key=lambda e: abs(e - (index.dim() - 2)))
    rest = sorted((e for e in candidates if e != first), key=lambda e: -index.shape[e])
    return [first, *rest]


RULES: dict[str, Rule] = dict.fromkeys(
    ("view", "_unsafe_view", "reshape", "_reshape_alias", "flatten", "unflatten", "squeeze"), _view
)
