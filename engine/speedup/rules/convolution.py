"""Convolutions: of any rank, transposed, grouped, and with computed weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from engine.speedup.records import Back, Fold
from engine.speedup.rules.products import meet
from engine.speedup.trace import Rule, Trace
from engine.speedup.tracked import Grouped, Tracked
from engine.speedup.zeros import Reach, uniform, zero_slices


def _convolution(
    trace: Trace, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], output: Tensor
) -> Back | None:
    x, weight, bias, stride, padding, _, transposed, _, groups = args[:9]
    if x.dim() != weight.dim():
        return None
    tx, tw = trace.of(x), trace.of(weight)
    tb = trace.of(bias) if bias is not None else None
    if not tw.constant and groups > 1:
        return None
    trace.pin(tw, "the kernel's size", range(2, weight.dim()))
    # With a kernel of one each position is computed by itself: they may be features elsewhere.
    alone = {*weight.shape[2:], *stride} == {1} and not any(padding)
    positions = [d for d in range(2, x.dim()) if alone and tx.labels[d] is not None]
    trace.pin(
        tx, "a position, not a channel", [d for d in range(x.dim()) if d not in (1, *positions)]
    )
    # (groups, outputs per group, inputs per group), and what a label of the weight stands for.
    inside, outside = (0, 1) if transposed else (1, 0)
    per_in, per_out = x.shape[1] // groups, output.shape[1] // groups
    dead_in = tx.flags(1)
    nonzero: Tensor | None = None
    if tw.constant and not trace.planning:
        kernels = weight.flatten(2)
        nonzero = kernels[..., 0] if kernels.shape[2] == 1 else kernels.abs().sum(dim=2)
    elif not trace.planning:
        zero_rows, zero_columns = (zero_slices(weight, tw, d) for d in (0, 1))
        nonzero = ~(zero_rows[:, None] | zero_columns)
        # A constant that meets a weight which is none is none.
        dead_in = zero_slices(x, tx, 1)
    # What could be masked: nothing is zero yet, as far as it matters.
    reach = Reach(_by_group(nonzero, groups, transposed), per_out, per_in)
    lx = tx.labels[1]
    if lx is None and groups == 1:
        trace.pin(tw, "the convolution's input is fixed", [inside])
    made = Tracked(
        output.shape,
        [tx.labels[d] if d in positions else None for d in range(x.dim())],
        [tx.flags(d) & tw.constant if d in positions else None for d in range(x.dim())],
        constant=tx.constant and tw.constant,
    )
    dead_out = ~reach.outputs(~dead_in.view(groups, per_in)).flatten()
    lo: Tensor | None = tw.labels[outside]
    if groups == 1:
        if lx is not None and tw.labels[inside] is not None:
            trace.join(tw, inside, lx)
    else:
        lo = _grouped(trace, tx, lx, tw, outside, transposed, groups, dead_out)
    if lo is not None:
        made.labels[1], made.dead[1] = lo, dead_out
        if tb is not None:
            meet(trace, made, 1, tb, 0, "convolution")
    elif tb is not None:
        trace.pin(tb, "the layer's outputs are fixed")
    trace.put(output, made)
    dead_values = tx.flags(1)
    if trace.planning or lx is None or not bool(dead_values.any()):
        return _back(tx, tw, made, reach, positions, groups, inside)
    dead_values = dead_values & ~zero_slices(x, tx, 1)
    if not tw.constant:
        trace.pin_values(lx[dead_values], "a constant that is not zero meets a product")
    elif bool(dead_values.any()):
        kept = x.detach()[:, dead_values.to(x.device)]

        def contribution(indices: Tensor) -> Tensor:
            full = torch.zeros_like(x)
            wanted = torch.zeros(x.shape[1], dtype=torch.bool)
            wanted[indices] = True
            chosen = wanted & dead_values
            full[:, chosen] = kept[:, wanted[dead_values]]
            result: Tensor = func(full, weight, None, *args[3:])
            return result

        values = uniform(x, 1, tx.flags(1))
        trace.folds.append(
            Fold(
                *(tx, 1, contribution, 1, tw, inside if groups == 1 else None, values),
                *(tb, trace.path),
            )
        )
    return _back(tx, tw, made, reach, positions, groups, inside)


def _back(
    tx: Tracked,
    tw: Tracked,
    made: Tracked,
    reach: Reach,
    positions: Sequence[int],
    groups: int,
    inside: int,
) -> Back:
    """Return what propagates need to the input and the weight, whose ``inside`` are inputs."""

    def back() -> None:
        flow = made.flow(1)
        if not made.used or made.constant or not bool(flow.any()):
            return
        tx.used = tw.used = True
        for d in positions:
            tx.want(d, made.flow(d))
        reached = reach.inputs(flow.view(groups, -1)).flatten()
        if groups == 1:
            tw.want(1 - inside, flow)
            tw.want(inside, reached)
        tx.want(1, reached)

    return back


def _by_group(weight: Tensor | None, groups: int, transposed: bool) -> Tensor | None:
    """Return (groups, outputs of a group, inputs of a group) of a weight's two dimensions."""
    if weight is None:
        return None
    stacked = weight.reshape(groups, -1, weight.shape[1])
    return stacked.mT if transposed else stacked


def _grouped(
    trace: Trace,
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
        trace.pin(tw, "a grouped convolution's weight is computed")
    weight_out = tw.labels[outside]
    # A transposed one's have dimension 1 for themselves, of size 1 where it is depthwise.
    if tw.grouped is not None or (weight_out is None and not transposed):
        trace.pin(tw, "a grouped convolution's weight is used twice")
        if lx is not None:
            trace.labels.pin(lx, "a grouped convolution's weight is used twice")
        return None
    # One dimension of the weight is shared by the groups: its labels stand for nothing by itself.
    labels_out = weight_out
    if labels_out is None or transposed:
        labels_out = trace.labels.fresh(len(dead_out))
    tw.grouped = Grouped(groups, lx, labels_out, transposed)
    trace.grouped.append((trace.path, tw))
    dead_in = tx.flags(1).view(groups, per_in)
    dead = dead_out.view(groups, per_out)
    by_place, groups_in = labels_out.view(groups, -1), None if lx is None else lx.view(groups, -1)
    whole = int((dead_in.all(dim=1) & dead.all(dim=1)).sum()) * (per_in + per_out)
    paired = groups * (int(dead_in.sum(dim=1).min()) + int(dead.sum(dim=1).min()))
    if groups_in is not None and (per_in == 1 or whole > paired):
        for rows in (groups_in, by_place):
            trace.labels.unite_rows(rows)
        trace.labels.unite(groups_in[:, 0], by_place[:, 0])
        trace.follow_number(groups, by_place[:, 0])
        return labels_out
    _pair(trace, by_place, dead)
    if groups_in is not None:
        _pair(trace, groups_in, dead_in)
    return labels_out


def _pair(trace: Trace, labels: Tensor, dead: Tensor) -> None:
    """Unite, over the groups (rows), the r-th dead and the r-th living index of each."""
    order = torch.argsort((~dead).to(torch.int8), dim=1, stable=True)
    arranged = labels.gather(1, order)
    for row in arranged[1:]:
        trace.labels.unite(arranged[0], row)


RULES: dict[str, Rule] = {"convolution": _convolution}
