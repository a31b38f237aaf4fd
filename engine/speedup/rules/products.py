"""Products of matrices and vectors, which sum over channels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from engine.speedup.records import Back, Fold
from engine.speedup.rules.dims import put_like, together
from engine.speedup.trace import Rule, Trace
from engine.speedup.tracked import Tracked
from engine.speedup.zeros import Reach, uniform, zero_slices


def meet(trace: Trace, a: Tracked, i: int, b: Tracked, j: int, name: str) -> None:
    """Unite the labels of two dimensions of equal size; a fixed one fixes the other."""
    left, right = a.labels[i], b.labels[j]
    if left is not None and right is not None:
        trace.join(b, j, left)
    elif left is not None or right is not None:
        labels = left if left is not None else right
        assert labels is not None
        trace.labels.pin(labels, f"{name} combines it with a tensor of fixed size")


def _matmul(
    trace: Trace, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], output: Tensor
) -> Back | None:
    name = func._schema.name.removeprefix("aten::")
    bias = args[0] if name in ("addmm", "baddbmm") else None
    a, b = args[1:3] if bias is not None else args[:2]
    ta, tb = trace.of(a), trace.of(b)
    if bias is not None and (kwargs.get("beta", 1) != 1 or kwargs.get("alpha", 1) != 1):
        return None
    rank = output.dim()
    row, inner, column = rank - 2, rank - 1, rank - 1
    meet(trace, ta, inner, tb, row, name)
    made = Tracked(output.shape, constant=ta.constant and tb.constant)
    dead_a, dead_b = ta.flags(inner), tb.flags(row)
    zero_a = zero_slices(a, ta, inner)
    if tb.constant and rank == 2 and not bool((dead_a & ~zero_a).any()):
        zero_b = torch.zeros_like(dead_b)  # what its zeros spare, shows in what it reaches
    else:
        zero_b = zero_slices(b, tb, row)
    passing = ~(zero_a | zero_b | (dead_a & dead_b))
    parts = {row: (ta, row), column: (tb, column)}
    if rank == 3:
        parts[0] = (ta, 0)
        meet(trace, ta, 0, tb, 0, name)
    for place, (source, dim) in parts.items():
        labels = source.labels[dim]
        if labels is None and place == 0 and rank == 3:
            labels = tb.labels[0]
        if labels is None:
            continue
        made.labels[place] = labels
        if place == 0 and rank == 3:
            dead = zero_slices(a, ta, 0) | zero_slices(b, tb, 0) | (ta.flags(0) & tb.flags(0))
        elif place == column:
            dead = _dead(b, b, tb, column, ta.constant, passing)
        else:
            dead = _dead(a.mT, a, ta, row, tb.constant, passing)
        made.dead[place] = dead
    t_bias = None
    if bias is not None:
        t_bias = trace.of(bias)
        shift = rank - bias.dim()
        for dim in range(bias.dim()):
            if bias.shape[dim] == output.shape[dim + shift] != 1:
                if made.labels[dim + shift] is None:
                    trace.pin(t_bias, "the layer's outputs are fixed", [dim])
                else:
                    meet(trace, made, dim + shift, t_bias, dim, name)
        if not t_bias.constant:
            for dim in made.dims():
                made.dead[dim] = made.flags(dim) & False
            made.constant = False
    trace.put(output, made)
    _fold_matmul(trace, a, b, ta, tb, t_bias, rank, zero_a, zero_b)

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
    trace: Trace, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], output: Tensor
) -> Back | None:
    """Products with vectors, as products of matrices."""
    a, b = args[:2]
    rows = a if a.dim() == 2 else a.unsqueeze(0)
    column, result = b.unsqueeze(1), output.reshape(-1, 1)
    backs = [put_like(trace, column, b, [0, None])[1]]
    if a.dim() == 1:
        backs.append(put_like(trace, rows, a, [None, 0])[1])
    product = _matmul(trace, func, (rows, column), {}, result)
    if product is None:
        return None
    out = put_like(trace, output, result, [0] if output.dim() else [])[1]
    return together([out, product, *backs])


def _dead(
    b: Tensor, stored: Tensor, tb: Tracked, dim: int, other_constant: bool, passing: Tensor
) -> Tensor:
    """Return which columns of a @ b are constant; ``passing`` says which inner indices carry.

    ``tb`` describes ``stored``, which is ``b`` or its transpose; its ``dim`` is b's columns.
    """
    if tb.constant:
        if other_constant:
            return torch.full((b.shape[-1],), True)
        return ~_reach(b, tb).outputs(passing)
    return zero_slices(stored, tb, dim) | (tb.flags(dim) & other_constant)


def _touched(b: Tensor, tb: Tracked, flow: Tensor) -> Tensor:
    """Return which rows of b reach a column that is needed."""
    if not tb.constant:
        return torch.full((b.shape[-2],), bool(flow.any()))
    return _reach(b, tb).inputs(flow)


def _reach(b: Tensor, tb: Tracked) -> Reach:
    """Return which columns of a @ b depend on which of its rows, for any of a batch of them."""
    weights: Tensor | None = None
    if not tb.is_unmasked:
        weights = (b != 0).flatten(0, -3).any(dim=0).mT if b.dim() > 2 else b.mT
    return Reach(weights, b.shape[-1], b.shape[-2])


def _fold_matmul(
    trace: Trace,
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
            trace.pin_values(labels[~zero_a & ~zero_b], "it is summed into a constant")
        return
    if not (tb.constant and tb.base is not None and rank == 2 and not ta.constant):
        both = (ta.flags(inner) | tb.flags(row)) & ~zero_a & ~zero_b
        if bool(both.any()) and not (ta.constant or tb.constant):
            trace.pin_values(labels[both], "a constant that is not zero meets a product")
        elif ta.constant and not tb.constant and bool((tb.flags(row) & ~zero_b).any()):
            trace.pin_values(labels[tb.flags(row) & ~zero_b], "its constant cannot be folded")
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
    values = uniform(a, inner, ta.flags(inner))
    trace.folds.append(Fold(ta, inner, contribution, 1, tb.base, 1, values, bias, trace.path))


_Function = Callable[..., Back | None]
_GROUPS: dict[_Function, str] = {_matmul: "mm addmm bmm baddbmm", _vector: "mv dot vdot"}
RULES: dict[str, Rule] = {name: rule for rule, names in _GROUPS.items() for name in names.split()}
