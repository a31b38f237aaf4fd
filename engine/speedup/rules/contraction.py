"""Operators that sum over channels: convolutions, matrix products, attention, embeddings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from engine.speedup.rules.dims import put_like, together
from engine.speedup.rules.pointwise import zero_slices
from engine.speedup.tracer import Back, Fold, Rule, Tracer
from engine.speedup.tracked import Grouped, Tracked


def _meet(tracer: Tracer, a: Tracked, i: int, b: Tracked, j: int, name: str) -> None:
    """Unite the labels of two dimensions of equal size; a fixed one fixes the other."""
    left, right = a.labels[i], b.labels[j]
    if left is not None and right is not None:
        tracer.join(b, j, left)
    elif left is not None or right is not None:
        labels = left if left is not None else right
        assert labels is not None
        tracer.labels.pin(labels, f"{name} combines it with a tensor of fixed size")


def _convolution(
    tracer: Tracer, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], output: Tensor
) -> Back | None:
    x, weight, bias, stride, padding, _, transposed, _, groups = args[:9]
    if x.dim() != weight.dim():
        return None
    tx, tw = tracer.of(x), tracer.of(weight)
    tb = tracer.of(bias) if bias is not None else None
    if not tw.constant and groups > 1:
        return None
    tracer.pin(tw, "the kernel's size", range(2, weight.dim()))
    # With a kernel of one each position is computed by itself: they may be features elsewhere.
    alone = {*weight.shape[2:], *stride} == {1} and not any(padding)
    positions = [d for d in range(2, x.dim()) if alone and tx.labels[d] is not None]
    tracer.pin(
        tx, "a position, not a channel", [d for d in range(x.dim()) if d not in (1, *positions)]
    )
    # (groups, outputs per group, inputs per group), and what a label of the weight stands for.
    inside, outside = (0, 1) if transposed else (1, 0)
    per_in, per_out = x.shape[1] // groups, output.shape[1] // groups
    dead_in = tx.flags(1)
    if tracer.planning:
        # What could be masked: nothing is zero yet, as far as it matters.
        nonzero = torch.ones(weight.shape[:2], dtype=torch.bool)
    elif tw.constant:
        kernels = weight.flatten(2)
        largest = kernels[..., 0] if kernels.shape[2] == 1 else kernels.abs().amax(dim=2)
        nonzero = (largest != 0).cpu()
    else:
        zero_rows, zero_columns = (zero_slices(weight, tw, d) for d in (0, 1))
        nonzero = ~(zero_rows[:, None] | zero_columns)
        # A constant that meets a weight which is none is none.
        dead_in = zero_slices(x, tx, 1)
    if transposed:
        nonzero = nonzero.view(groups, per_in, per_out).transpose(1, 2)
    else:
        nonzero = nonzero.view(groups, per_out, per_in)
    lx = tx.labels[1]
    if lx is None and groups == 1:
        tracer.pin(tw, "the convolution's input is fixed", [inside])
    made = Tracked(
        output.shape,
        [tx.labels[d] if d in positions else None for d in range(x.dim())],
        [tx.flags(d) & tw.constant if d in positions else None for d in range(x.dim())],
        constant=tx.constant and tw.constant,
    )
    live = ~dead_in.view(groups, 1, per_in)
    dead_out = ~(nonzero & live).any(dim=2).flatten()
    lo: Tensor | None = tw.labels[outside]
    if groups == 1:
        if lx is not None and tw.labels[inside] is not None:
            tracer.join(tw, inside, lx)
    else:
        lo = _grouped(tracer, tx, lx, tw, outside, transposed, groups, dead_out)
    if lo is not None:
        made.labels[1], made.dead[1] = lo, dead_out
        made.need[1] = torch.zeros(output.shape[1], dtype=torch.bool)
        if tb is not None:
            _meet(tracer, made, 1, tb, 0, "convolution")
    elif tb is not None:
        tracer.pin(tb, "the layer's outputs are fixed")
    tracer.put(output, made)
    dead_values = tx.flags(1) & ~zero_slices(x, tx, 1)
    if not tw.constant and lx is not None:
        tracer.pin_values(lx[dead_values], "a constant that is not zero meets a product")
    elif bool(dead_values.any()) and lx is not None:
        kept = x.detach()[:, dead_values.to(x.device)]

        def contribution(indices: Tensor) -> Tensor:
            full = torch.zeros_like(x)
            wanted = torch.zeros(x.shape[1], dtype=torch.bool)
            wanted[indices] = True
            chosen = wanted & dead_values
            full[:, chosen] = kept[:, wanted[dead_values]]
            result: Tensor = func(full, weight, None, *args[3:])
            return result

        values = _uniform(x, 1, tx.flags(1))
        tracer.folds.append(
            Fold(
                *(tx, 1, contribution, 1, tw, inside if groups == 1 else None, values),
                *(tb, tracer.path),
            )
        )

    def back() -> None:
        flow = made.flow(1)
        if not made.used or made.constant or not bool(flow.any()):
            return
        tx.used = tw.used = True
        for d in positions:
            tx.want(d, made.flow(d))
        if groups == 1:
            tw.want(outside, flow)
            tw.want(inside, (nonzero[0] & flow[:, None]).any(dim=0))
        tx.want(1, (nonzero & flow.view(groups, per_out, 1)).any(dim=1).flatten())

    return back


def _uniform(x: Tensor, dim: int, dead: Tensor) -> Tensor:
    """Return the value of each constant channel, NaN where it differs between positions."""
    flat = x.detach().movedim(dim, 0).reshape(x.shape[dim], -1).double().cpu()
    alike = dead & (flat == flat[:, :1]).all(dim=1)
    return torch.where(alike, flat[:, 0], torch.nan)


def _grouped(
    tracer: Tracer,
    tx: Tracked,
    lx: Tensor | None,
    tw: Tracked,
    outside: int,
    transposed: bool,
    groups: int,
    dead_out: Tensor,
) -> Tensor | None:
    """Return labels for the outputs of a grouped convolution.

    Whole groups go when all that a group reads or writes is dead. Otherwise each group loses as
    many: the r-th channel to go in one group goes with the r-th of every other.
    """
    per_out = len(dead_out) // groups
    per_in = tx.shape[1] // groups
    if per_in > 1 and not tw.slots:
        tracer.pin(tw, "a grouped convolution's weight is computed")
    if tw.grouped is not None or (weight_out := tw.labels[outside]) is None:
        tracer.pin(tw, "a grouped convolution's weight is used twice")
        if lx is not None:
            tracer.labels.pin(lx, "a grouped convolution's weight is used twice")
        return None
    # One dimension of the weight is shared by the groups: its labels stand for nothing by itself.
    labels_out = tracer.labels.fresh(len(dead_out)) if transposed else weight_out
    tw.grouped = Grouped(groups, lx, labels_out, transposed)
    tracer.grouped.append((tracer.path, tw))
    dead_in = tx.flags(1).view(groups, per_in)
    dead = dead_out.view(groups, per_out)
    by_place, groups_in = labels_out.view(groups, -1), None if lx is None else lx.view(groups, -1)
    whole = int((dead_in.all(dim=1) & dead.all(dim=1)).sum()) * (per_in + per_out)
    paired = groups * (int(dead_in.sum(dim=1).min()) + int(dead.sum(dim=1).min()))
    if groups_in is not None and (per_in == 1 or whole > paired):
        tracer.labels.unite_rows(torch.cat([groups_in, by_place], 1))
        return labels_out
    _pair(tracer, by_place, dead)
    if groups_in is not None:
        _pair(tracer, groups_in, dead_in)
    return labels_out


def _pair(tracer: Tracer, labels: Tensor, dead: Tensor) -> None:
    """Unite, over the groups (rows), the r-th dead and the r-th living index of each."""
    order = torch.argsort((~dead).to(torch.int8), dim=1, stable=True)
    arranged = labels.gather(1, order)
    for row in arranged[1:]:
        tracer.labels.unite(arranged[0], row)


def _matmul(
    tracer: Tracer, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], output: Tensor
) -> Back | None:
    name = func._schema.name.removeprefix("aten::")
    bias = args[0] if name in ("addmm", "baddbmm") else None
    a, b = args[1:3] if bias is not None else args[:2]
    ta, tb = tracer.of(a), tracer.of(b)
    if bias is not None and (kwargs.get("beta", 1) != 1 or kwargs.get("alpha", 1) != 1):
        return None
    rank = output.dim()
    row, inner, column = rank - 2, rank - 1, rank - 1
    _meet(tracer, ta, inner, tb, row, name)
    made = Tracked(output.shape, constant=ta.constant and tb.constant)
    zero_a, zero_b = zero_slices(a, ta, inner), zero_slices(b, tb, row)
    dead_a, dead_b = ta.flags(inner), tb.flags(row)
    passing = ~(zero_a | zero_b | (dead_a & dead_b))
    parts = {row: (ta, row), column: (tb, column)}
    if rank == 3:
        parts[0] = (ta, 0)
        _meet(tracer, ta, 0, tb, 0, name)
    for place, (source, dim) in parts.items():
        labels = source.labels[dim]
        if labels is None and place == 0 and rank == 3:
            labels = tb.labels[0]
        if labels is None:
            continue
        made.labels[place] = labels
        made.need[place] = torch.zeros(output.shape[place], dtype=torch.bool)
        if place == 0 and rank == 3:
            dead = zero_slices(a, ta, 0) | zero_slices(b, tb, 0) | (ta.flags(0) & tb.flags(0))
        elif place == column:
            dead = _dead(b, tb, column, ta.constant, passing)
        else:
            dead = _dead(a.mT, ta, row, tb.constant, passing, a)
        made.dead[place] = dead
    t_bias = None
    if bias is not None:
        t_bias = tracer.of(bias)
        shift = rank - bias.dim()
        for dim in range(bias.dim()):
            if bias.shape[dim] == output.shape[dim + shift] != 1:
                if made.labels[dim + shift] is None:
                    tracer.pin(t_bias, "the layer's outputs are fixed", [dim])
                else:
                    _meet(tracer, made, dim + shift, t_bias, dim, name)
        if not t_bias.constant:
            for dim in made.dims():
                made.dead[dim] = made.flags(dim) & False
            made.constant = False
    tracer.put(output, made)
    _fold_matmul(tracer, a, b, ta, tb, t_bias, rank, zero_a, zero_b)

    def back() -> None:
        if not made.used or made.constant:
            return
        flow_row, flow_column = made.flow(row), made.flow(column)
        if t_bias is not None:
            t_bias.used = True
            for dim in t_bias.dims():
                t_bias.want(dim, True)
        ta.used = tb.used = True
        need_a = ~zero_b & _touched(b, tb, flow_column)
        need_b = ~zero_a & _touched(a.mT, ta, flow_row)
        ta.want(inner, need_a)
        tb.want(row, need_b)
        ta.want(row, flow_row)
        tb.want(column, flow_column)
        if rank == 3:
            ta.want(0, made.flow(0) & ~zero_slices(b, tb, 0))
            tb.want(0, made.flow(0) & ~zero_slices(a, ta, 0))

    return back


def _vector(
    tracer: Tracer, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], output: Tensor
) -> Back | None:
    """Products with vectors, as products of matrices."""
    a, b = args[:2]
    rows = a if a.dim() == 2 else a.unsqueeze(0)
    column, result = b.unsqueeze(1), output.reshape(-1, 1)
    backs = [put_like(tracer, column, b, [0, None])[1]]
    if a.dim() == 1:
        backs.append(put_like(tracer, rows, a, [None, 0])[1])
    product = _matmul(tracer, func, (rows, column), {}, result)
    if product is None:
        return None
    out = put_like(tracer, output, result, [0] if output.dim() else [])[1]
    return together([out, product, *backs])


def _dead(
    b: Tensor,
    tb: Tracked,
    dim: int,
    other_constant: bool,
    passing: Tensor,
    stored: Tensor | None = None,
) -> Tensor:
    """Return which columns of a @ b are constant; ``passing`` says which inner indices carry.

    ``tb`` describes ``stored`` (``b`` itself by default), whose ``dim`` holds the columns of b.
    """
    if tb.constant:
        if other_constant:
            return torch.full((b.shape[-1],), True)
        return ~(_nonzero(b) & passing[:, None]).any(dim=0)
    zero = zero_slices(b if stored is None else stored, tb, dim)
    return zero | (tb.flags(dim) & other_constant)


def _touched(b: Tensor, tb: Tracked, flow: Tensor) -> Tensor:
    """Return which rows of b reach a column that is needed."""
    if not tb.constant:
        return torch.full((b.shape[-2],), bool(flow.any()))
    return (_nonzero(b) & flow).any(dim=1)


def _nonzero(b: Tensor) -> Tensor:
    """Return where a matrix, or any of a batch of them, is not zero."""
    return ((b != 0).flatten(0, -3).any(dim=0) if b.dim() > 2 else b != 0).cpu()


def _fold_matmul(
    tracer: Tracer,
    a: Tensor,
    b: Tensor,
    ta: Tracked,
    tb: Tracked,
    bias: Tracked | None,
    rank: int,
    zero_a: Tensor,
    zero_b: Tensor,
) -> None:
    inner, row = rank - 1, rank - 2
    dead = ta.flags(inner) & ~zero_a & ~zero_b
    labels = ta.labels[inner] if ta.labels[inner] is not None else tb.labels[row]
    if labels is None:
        return
    if ta.constant and tb.constant:
        # All of it is constant, and none of it goes away by that.
        if bool((~zero_a & ~zero_b).any()):
            tracer.pin_values(labels[~zero_a & ~zero_b], "it is summed into a constant")
        return
    if not (tb.constant and tb.base is not None and rank == 2 and not ta.constant):
        both = (ta.flags(inner) | tb.flags(row)) & ~zero_a & ~zero_b
        if bool(both.any()) and not (ta.constant or tb.constant):
            tracer.pin_values(labels[both], "a constant that is not zero meets a product")
        elif ta.constant and not tb.constant and bool((tb.flags(row) & ~zero_b).any()):
            tracer.pin_values(labels[tb.flags(row) & ~zero_b], "its constant cannot be folded")
        return
    if not bool(dead.any()):
        return
    kept = a.detach()[:, dead].clone()

    def contribution(indices: Tensor) -> Tensor:
        wanted = torch.zeros(len(dead), dtype=torch.bool)
        wanted[indices] = True
        chosen = wanted & dead
        return kept[:, wanted[dead]] @ b[chosen]

    # The weight reached the product transposed: its columns count the inputs.
    values = _uniform(a, inner, ta.flags(inner))
    tracer.folds.append(Fold(ta, inner, contribution, 1, tb.base, 1, values, bias, tracer.path))


def _attention(
    tracer: Tracer, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any
) -> Back | None:
    """Fused attention over (batch, heads, positions, features)."""
    q, k, v = (tracer.of(t) for t in args[:3])
    out = output[0]
    if out.dim() != 4 or len({t.shape[1] for t in (q, k, v)}) != 1:
        return None
    for t in (q, k, v):
        tracer.pin(t, "a position, not a channel", [0, 2])
    _meet(tracer, q, 1, k, 1, "attention")
    _meet(tracer, q, 1, v, 1, "attention")
    _meet(tracer, q, 3, k, 3, "attention")
    given = [t for t in (*args[3:], *kwargs.values()) if isinstance(t, Tensor)]
    masks = [tracer.of(t) for t in given]
    for mask in masks:
        heads_at = len(mask.shape) - 3
        tracer.pin(mask, "a position, not a channel", [d for d in mask.dims() if d != heads_at])
        if heads_at >= 0 and mask.shape[heads_at] > 1:
            _meet(tracer, q, 1, mask, heads_at, "attention")
    if kwargs.get("scale") is None:
        for t in (q, k):
            tracer.pin(t, "attention is scaled by the number of features", [3])
    made = Tracked(
        out.shape,
        [None, v.labels[1], None, v.labels[3]],
        [None, v.flags(1), None, v.flags(3)],
        constant=all(t.constant for t in (q, k, v)),
    )
    for dim in (1, 3):
        if made.labels[dim] is None:
            made.dead[dim] = None
    tracer.put(out, made)
    for extra in output[1:]:
        if isinstance(extra, Tensor):
            tracer.put(extra, Tracked(extra.shape))

    def back() -> None:
        if not made.used or made.constant:
            return
        heads = made.flow(1)
        for t in (q, k, v):
            t.used = True
            t.want(1, heads)
        v.want(3, made.flow(3))
        for t in (q, k):
            t.want(3, True)
        for mask in masks:
            mask.used = True
            for d in mask.dims():
                mask.want(d, heads if d == len(mask.shape) - 3 else True)

    return back


def _bilinear(
    tracer: Tracer, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], output: Tensor
) -> Back | None:
    """x1 (batch, in1), weight (out, in1, in2), x2 (batch, in2) -> (batch, out)."""
    a, weight, b = (tracer.of(t) for t in args[:3])
    if list(map(list, args[3:7])) != [[1, 3], [0], [1, 2], [2, 3]] or not weight.constant:
        return None
    _meet(tracer, a, 1, weight, 1, "bilinear")
    _meet(tracer, b, 1, weight, 2, "bilinear")
    zero = [zero_slices(args[1], weight, d) for d in range(3)]
    for side, tensor, place in ((a, args[0], 1), (b, args[2], 2)):
        constant = side.flags(1) & ~zero_slices(tensor, side, 1) & ~zero[place]
        labels = side.labels[1]
        if labels is not None:
            tracer.pin_values(labels[constant], "a constant that is not zero meets a product")
    made = Tracked(output.shape, constant=a.constant and b.constant)
    if weight.labels[0] is not None:
        made.labels[1], made.dead[1] = weight.labels[0], zero[0] | made.constant
        made.need[1] = torch.zeros(output.shape[1], dtype=torch.bool)
    tracer.put(output, made)

    def back() -> None:
        if made.used and not made.constant:
            for each in (a, b, weight):
                each.used = True
            a.want(1, ~zero[1])
            b.want(1, ~zero[2])

    return back


def _embedding(
    tracer: Tracer, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], output: Tensor
) -> Back | None:
    weight, indices = args[0], tracer.of(args[1])
    tw = tracer.of(weight)
    tracer.pin(tw, "a row of a table that is looked up", [0])
    rank = output.dim()
    constant = indices.constant and tw.constant
    made = Tracked(output.shape, constant=constant)
    if tw.labels[1] is not None:
        made.labels[rank - 1] = tw.labels[1]
        made.dead[rank - 1] = zero_slices(weight, tw, 1) | constant
        made.need[rank - 1] = torch.zeros(output.shape[-1], dtype=torch.bool)
    tracer.put(output, made)

    def back() -> None:
        if made.used:
            tw.used = indices.used = True
            tw.want(1, made.flow(rank - 1))

    return back


def _weight_norm(
    tracer: Tracer, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any
) -> Back | None:
    """g v / |v| (Salimans and Kingma 2016): a norm does not change when zeros leave it."""
    v, g, dim = tracer.of(args[0]), tracer.of(args[1]), args[2] if len(args) > 2 else 0
    if not (v.constant and g.constant):
        return None
    made = Tracked(output[0].shape, v.labels, constant=True)
    v.scaled.add(dim)
    _meet(tracer, v, dim, g, dim, "weight norm")
    for d in v.dims():
        labels = v.labels[d]
        if d != dim and labels is not None:
            zero = zero_slices(args[0], v, d)
            tracer.pin_values(labels[~zero], "the weight's norm is over it")
    tracer.put(output[0], made)
    tracer.put(output[1], Tracked(output[1].shape, constant=True))

    def back() -> None:
        v.used = g.used = made.used
        for d in v.dims():
            v.want(d, made.flow(d))

    return back


_Function = Callable[..., Back | None]
_GROUPS: dict[_Function, str] = {
    _convolution: "convolution",
    _matmul: "mm addmm bmm baddbmm",
    _vector: "mv dot vdot",
    _weight_norm: "_weight_norm_interface",
    _bilinear: "_trilinear",
    _attention: "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention "
    "_scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention",
    _embedding: "embedding",
}
RULES: dict[str, Rule] = {name: rule for rule, names in _GROUPS.items() for name in names.split()}
