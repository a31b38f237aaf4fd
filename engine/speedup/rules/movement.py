"""Operators that move elements without changing them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from engine.speedup.labels import FIXED
from engine.speedup.tracer import Back, Rule, Tracer
from engine.speedup.tracked import Tracked


def _put_like(
    tracer: Tracer, tensor: Tensor, source: Tracked, dims: Sequence[int | None]
) -> tuple[Tracked, Back]:
    """Make an output whose dimension e is the input's ``dims[e]``, index for index."""
    made = Tracked(
        tensor.shape,
        [None if d is None else source.labels[d] for d in dims],
        [None if d is None or source.labels[d] is None else source.flags(d) for d in dims],
        constant=source.constant,
    )
    made.base = source.base or (source if source.slots else None)
    tracer.put(tensor, made)
    tracer.alias(tensor)

    def back() -> None:
        if made.used and not made.constant:
            source.used = True
            for e, d in enumerate(dims):
                if d is not None:
                    source.want(d, made.flow(e))
            for d in source.dims():
                if d not in dims:
                    source.want(d, True)

    return made, back


def _permute(
    tracer: Tracer, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], output: Tensor
) -> Back | None:
    name, rank = func._schema.name.removeprefix("aten::"), args[0].dim()
    order = list(range(rank))
    if name == "permute":
        order = [d % rank for d in args[1]]
    elif name in ("transpose", "swapaxes"):
        a, b = args[1] % rank, args[2] % rank
        order[a], order[b] = order[b], order[a]
    elif rank == 2:
        order.reverse()
    return _put_like(tracer, output, tracer.of(args[0]), order)[1]


def _unsqueeze(
    tracer: Tracer, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], output: Tensor
) -> Back | None:
    dims: list[int | None] = list(range(args[0].dim()))
    dims.insert(args[1] % output.dim(), None)
    return _put_like(tracer, output, tracer.of(args[0]), dims)[1]


def _expand(
    tracer: Tracer, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], output: Tensor
) -> Back | None:
    shift = output.dim() - args[0].dim()
    dims = [
        e - shift if e >= shift and args[0].shape[e - shift] == output.shape[e] else None
        for e in range(output.dim())
    ]
    return _put_like(tracer, output, tracer.of(args[0]), dims)[1]


def _select(
    tracer: Tracer, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], output: Tensor
) -> Back | None:
    source, dim = tracer.of(args[0]), args[1] % args[0].dim()
    tracer.pin(source, "one index of it is selected", [dim])
    return _put_like(tracer, output, source, [d for d in range(args[0].dim()) if d != dim])[1]


def _unbind(
    tracer: Tracer, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any
) -> Back | None:
    dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % args[0].dim()
    source = tracer.of(args[0])
    tracer.pin(source, "its indices are taken apart", [dim])
    dims = [d for d in range(args[0].dim()) if d != dim]
    return _all([_put_like(tracer, t, source, dims)[1] for t in output])


def _all(backs: Sequence[Back]) -> Back:
    def back() -> None:
        for each in backs:
            each()

    return back


def _along(
    tracer: Tracer, tensor: Tensor, source: Tracked, dim: int, index: Tensor, reason: str
) -> Back:
    """Make an output that takes ``index`` (-1: a constant) of the input's ``dim``, rest alike."""
    dims: list[int | None] = [d if d != dim else None for d in range(len(source.shape))]
    made, _ = _put_like(tracer, tensor, source, dims)
    labels = source.labels[dim]
    if labels is not None:
        inside = index >= 0
        picked = torch.where(inside, labels[index.clamp(min=0)], FIXED)
        made.labels[dim] = picked
        made.dead[dim] = torch.where(inside, source.flags(dim)[index.clamp(min=0)], True)
        made.need[dim] = torch.zeros(len(index), dtype=torch.bool)
        if reason:
            tracer.labels.pin(labels, reason)

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
    tracer: Tracer, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], output: Tensor
) -> Back | None:
    given = list(args[1:]) + [None] * 4
    dim = (given[0] or 0) % args[0].dim()
    size = args[0].shape[dim]
    index = torch.arange(size)[slice(given[1], given[2], given[3])]
    # A slice of everything is none: it stays right when channels go.
    reason = "" if len(index) == size else "it is sliced at fixed places"
    return _along(tracer, output, tracer.of(args[0]), dim, index, reason)


def _split(
    tracer: Tracer, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any
) -> Back | None:
    dim = (args[2] if len(args) > 2 else kwargs.get("dim", 0)) % args[0].dim()
    source = tracer.of(args[0])
    sizes = [t.shape[dim] for t in output]
    labels = source.labels[dim]
    if labels is not None and len(sizes) > 1:
        if len(set(sizes)) == 1:
            # chunk() and split(size // n) follow the size when all parts lose the same indices.
            grid = labels.view(len(sizes), -1)
            for part in grid[1:]:
                tracer.labels.unite(grid[0], part)
            tracer.computed_sizes.append((tracer.path, sizes[0], grid[0]))
        else:
            tracer.labels.pin(labels, "it is split at fixed places")
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return _all(
        [
            _along(tracer, t, source, dim, torch.arange(start, start + size), "")
            for t, start, size in zip(output, starts, sizes, strict=True)
        ]
    )


def _flip(
    tracer: Tracer, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], output: Tensor
) -> Back | None:
    source = tracer.of(args[0])
    moved = [d % args[0].dim() for d in args[1]] if func._schema.name == "aten::flip" else None
    labelled = [d for d in source.dims() if moved is None or d in moved]
    if func._schema.name == "aten::roll":
        dims = [d % args[0].dim() for d in (args[2] if len(args) > 2 else [])]
        tracer.pin(source, "it is rolled", dims or None)
        return _put_like(tracer, output, source, list(range(args[0].dim())))[1]
    if len(labelled) == 1:
        dim = labelled[0]
        return _along(tracer, output, source, dim, torch.arange(args[0].shape[dim]).flip(0), "")
    tracer.pin(source, "it is flipped in several dimensions", labelled)
    return _put_like(tracer, output, source, list(range(args[0].dim())))[1]


def _index_select(
    tracer: Tracer, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], output: Tensor
) -> Back | None:
    dim = args[1] % args[0].dim()
    if not tracer.of(args[2]).constant:
        return None
    reason = "it is indexed at fixed places"
    return _along(tracer, output, tracer.of(args[0]), dim, args[2].cpu(), reason)


def _pad(
    tracer: Tracer, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], output: Tensor
) -> Back | None:
    source, pads = tracer.of(args[0]), list(args[1])
    rank = args[0].dim()
    padded = {rank - 1 - i: (pads[2 * i], pads[2 * i + 1]) for i in range(len(pads) // 2)}
    touched = [d for d in source.dims() if padded.get(d, (0, 0)) != (0, 0)]
    if len(touched) > 1 or any(min(padded[d]) < 0 for d in touched):
        return None
    if touched:
        before, after = padded[touched[0]]
        index = torch.arange(args[0].shape[touched[0]])
        index = torch.nn.functional.pad(index, (before, after), value=-1)
        return _along(tracer, output, source, touched[0], index, "")
    return _put_like(tracer, output, source, list(range(rank)))[1]


def _repeat(
    tracer: Tracer, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], output: Tensor
) -> Back | None:
    source, times = tracer.of(args[0]), args[1]
    shift = len(times) - args[0].dim()
    if any(times[d + shift] != 1 for d in source.dims()):
        return None
    dims = [e - shift if e >= shift and times[e] == 1 else None for e in range(output.dim())]
    return _put_like(tracer, output, source, dims)[1]


def _cat(
    tracer: Tracer, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], output: Tensor
) -> Back | None:
    tensors = [t for t in args[0] if not (t.dim() == 1 and t.numel() == 0)]
    dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % output.dim()
    sources = [tracer.of(t) for t in tensors]
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
                tracer.labels.unite(labelled[0], part)
            if len(labelled) < len(parts):
                tracer.labels.pin(labelled[0], "it is concatenated with a tensor of fixed size")
            made.labels[d] = labelled[0]
            made.dead[d] = torch.stack([s.flags(d) for s in sources]).all(dim=0)
        made.need[d] = torch.zeros(output.shape[d], dtype=torch.bool)
    tracer.put(output, made)

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
    tracer: Tracer, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], output: Tensor
) -> Back | None:
    dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % output.dim()
    sources = [tracer.of(t) for t in args[0]]
    made = Tracked(output.shape, constant=all(s.constant for s in sources))
    for d in range(output.dim() - 1):
        parts = [s.labels[d] for s in sources]
        labelled = [p for p in parts if p is not None]
        if not labelled:
            continue
        for part in labelled[1:]:
            tracer.labels.unite(labelled[0], part)
        if len(labelled) < len(parts):
            tracer.labels.pin(labelled[0], "it is stacked with a tensor of fixed size")
        e = d + (d >= dim)
        made.labels[e] = labelled[0]
        made.dead[e] = torch.stack([s.flags(d) for s in sources]).all(dim=0)
        made.need[e] = torch.zeros(output.shape[e], dtype=torch.bool)
    tracer.put(output, made)

    def back() -> None:
        if made.used and not made.constant:
            for source in sources:
                source.used = True
                for d in source.dims():
                    source.want(d, made.flow(d + (d >= dim)))

    return back


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
    tracer: Tracer, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], output: Tensor
) -> Back | None:
    """Split and merge dimensions; a split keeps rows or columns whole, whichever loses less."""
    source = tracer.of(args[0])
    made = Tracked(output.shape, constant=source.constant)
    made.base = source.base or (source if source.slots else None)
    if output.numel() == 0:
        return None
    moves: list[tuple[int, int | None, Tensor]] = []
    for left, right in chunks(source.shape, output.shape):
        labelled = [d for d in left if source.labels[d] is not None]
        if len(labelled) > 1:
            most = max(labelled, key=lambda d: (int(source.flags(d).sum()), source.shape[d]))
            for d in labelled:
                if d != most:
                    tracer.pin(source, "it is merged with another dimension", [d])
                    moves.append((d, None, torch.empty(0)))
            labelled = [most]
        for d in labelled:
            inner = math.prod(source.shape[k] for k in left if k > d)
            places = torch.arange(math.prod(source.shape[k] for k in left))
            index = (places // inner % source.shape[d]).view([output.shape[e] for e in right])
            e = _settle(tracer, source, d, index, right)
            moves.append((d, None if e is None else right[e], index))
            if e is None:
                continue
            grid = index.movedim(e, 0).reshape(index.shape[e], -1)
            labels = source.labels[d]
            assert labels is not None
            made.labels[right[e]] = labels[grid[:, 0]]
            made.dead[right[e]] = source.flags(d)[grid].all(dim=1)
            made.need[right[e]] = torch.zeros(len(grid), dtype=torch.bool)
            if len(right) > 1:
                tracer.computed_sizes.append(
                    (tracer.path, output.shape[right[e]], labels[grid[:, 0]])
                )
    tracer.put(output, made)
    tracer.alias(output)

    def back() -> None:
        if not made.used or made.constant:
            return
        source.used = True
        for d, e, index in moves:
            if e is None:
                source.want(d, True)
                continue
            within = [x for _, right in chunks(source.shape, output_shape) if e in right
                      for x in right]  # fmt: skip
            shape = [1] * len(within)
            shape[within.index(e)] = -1
            flow = made.flow(e).view(shape).expand(index.shape)
            need = torch.zeros(source.shape[d], dtype=torch.bool)
            need[index[flow]] = True
            source.want(d, need)

    output_shape = tuple(output.shape)
    return back


def _settle(
    tracer: Tracer, source: Tracked, dim: int, index: Tensor, right: Sequence[int]
) -> int | None:
    """Return which new dimension carries the labels, having united what goes with it."""
    labels, dead = source.labels[dim], source.flags(dim)
    assert labels is not None
    if not right:
        return None
    roots = tracer.labels.roots(labels)[index]
    best: tuple[int, int, int] | None = None
    for e, size in enumerate(index.shape):
        if size == 1:
            continue
        rows = roots.movedim(e, 0).reshape(size, -1)
        if bool((rows == rows[:, :1]).all()):
            return e
        lost = int(dead[index].movedim(e, 0).reshape(size, -1).all(dim=1).sum()) * rows.shape[1]
        # Without masks to go by: heads rather than head dimensions or the three of fused qkv.
        preference = -abs(e - (index.dim() - 2))
        best = max(best or (-1, -99, -1), (lost, preference, e))
    if best is None:
        tracer.labels.pin(labels, "it becomes a dimension of size one")
        return None
    for row in index.movedim(best[2], 0).reshape(index.shape[best[2]], -1):
        tracer.labels.unite_all(labels[row])
    return best[2]


def _squeeze(
    tracer: Tracer, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], output: Tensor
) -> Back | None:
    return _view(tracer, func, args, kwargs, output)


_Function = Callable[..., Back | None]
_GROUPS: dict[_Function, str] = {
    _permute: "permute transpose swapaxes t numpy_T",
    _unsqueeze: "unsqueeze",
    _expand: "expand",
    _select: "select",
    _unbind: "unbind",
    _slice: "slice",
    _split: "split split_with_sizes chunk tensor_split",
    _flip: "flip roll",
    _index_select: "index_select",
    _pad: "constant_pad_nd",
    _repeat: "repeat",
    _cat: "cat concat",
    _stack: "stack",
    _view: "view _unsafe_view reshape _reshape_alias flatten unflatten",
    _squeeze: "squeeze",
}
RULES: dict[str, Rule] = {name: rule for rule, names in _GROUPS.items() for name in names.split()}
