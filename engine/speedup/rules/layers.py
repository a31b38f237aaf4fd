"""Attention, embeddings, bilinear layers and weight norm, each one operator."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from engine.speedup.records import Back
from engine.speedup.rules.products import meet
from engine.speedup.trace import Rule, Trace
from engine.speedup.tracked import Tracked
from engine.speedup.zeros import zero_slices


def _attention(
    trace: Trace, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any
) -> Back | None:
    """Fused attention over (batch, heads, positions, features)."""
    q, k, v = (trace.of(t) for t in args[:3])
    out = output[0]
    if out.dim() != 4 or k.shape[1] != v.shape[1] or q.shape[1] % k.shape[1]:
        return None
    # Grouped queries: so many heads of the queries read one of the keys and values.
    shared = q.shape[1] // k.shape[1]
    for t in (q, k, v):
        trace.pin(t, "a position, not a channel", [0, 2])
    heads_of = k.labels[1]
    if shared > 1 and heads_of is not None:
        # A tensor that has each head of the keys as often as it is read.
        repeated = Tracked((q.shape[1],), [heads_of.repeat_interleave(shared)])
        meet(trace, q, 1, repeated, 0, "attention")
    elif shared > 1:
        trace.pin(q, "attention combines it with a tensor of fixed size", [1])
    else:
        meet(trace, q, 1, k, 1, "attention")
    meet(trace, k, 1, v, 1, "attention")
    meet(trace, q, 3, k, 3, "attention")
    given = [t for t in (*args[3:], *kwargs.values()) if isinstance(t, Tensor)]
    masks = [trace.of(t) for t in given]
    for mask in masks:
        heads_at = len(mask.shape) - 3
        trace.pin(mask, "a position, not a channel", [d for d in mask.dims() if d != heads_at])
        if heads_at >= 0 and mask.shape[heads_at] > 1:
            meet(trace, q, 1, mask, heads_at, "attention")
    if kwargs.get("scale") is None:
        for t in (q, k):
            trace.pin(t, "attention is scaled by the number of features", [3])
    made = Tracked(
        out.shape,
        [None, q.labels[1], None, v.labels[3]],
        [None, v.flags(1).repeat_interleave(shared), None, v.flags(3)],
        constant=all(t.constant for t in (q, k, v)),
    )
    for dim in (1, 3):
        if made.labels[dim] is None:
            made.dead[dim] = None
    trace.put(out, made)
    for extra in output[1:]:
        if isinstance(extra, Tensor):
            trace.put(extra, Tracked(extra.shape))

    def back() -> None:
        if not made.used or made.constant:
            return
        heads = made.flow(1)
        q.want(1, heads)
        for t in (k, v):
            t.want(1, heads.view(-1, shared).any(dim=1))
        q.used = k.used = v.used = True
        v.want(3, made.flow(3))
        for t in (q, k):
            t.want(3, True)
        for mask in masks:
            mask.used = True
            for d in mask.dims():
                mask.want(d, heads if d == len(mask.shape) - 3 else True)

    return back


def _bilinear(
    trace: Trace, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], output: Tensor
) -> Back | None:
    """x1 (batch, in1), weight (out, in1, in2), x2 (batch, in2) -> (batch, out)."""
    a, weight, b = (trace.of(t) for t in args[:3])
    if list(map(list, args[3:7])) != [[1, 3], [0], [1, 2], [2, 3]] or not weight.constant:
        return None
    meet(trace, a, 1, weight, 1, "bilinear")
    meet(trace, b, 1, weight, 2, "bilinear")
    zero = [zero_slices(args[1], weight, d) for d in range(3)]
    for side, tensor, place in ((a, args[0], 1), (b, args[2], 2)):
        constant = side.flags(1) & ~zero_slices(tensor, side, 1) & ~zero[place]
        labels = side.labels[1]
        if labels is not None:
            trace.pin_values(labels[constant], "a constant that is not zero meets a product")
    made = Tracked(output.shape, constant=a.constant and b.constant)
    if weight.labels[0] is not None:
        made.labels[1], made.dead[1] = weight.labels[0], zero[0] | made.constant
    trace.put(output, made)

    def back() -> None:
        if made.used and not made.constant:
            for each in (a, b, weight):
                each.used = True
            a.want(1, ~zero[1])
            b.want(1, ~zero[2])

    return back


def _embedding(
    trace: Trace, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], output: Tensor
) -> Back | None:
    weight, indices = args[0], trace.of(args[1])
    tw = trace.of(weight)
    trace.pin(tw, "a row of a table that is looked up", [0])
    rank = output.dim()
    constant = indices.constant and tw.constant
    made = Tracked(output.shape, constant=constant)
    if tw.labels[1] is not None:
        made.labels[rank - 1] = tw.labels[1]
        made.dead[rank - 1] = zero_slices(weight, tw, 1) | constant
    trace.put(output, made)

    def back() -> None:
        if made.used:
            tw.used = indices.used = True
            tw.want(1, made.flow(rank - 1))

    return back


def _weight_norm(
    trace: Trace, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any
) -> Back | None:
    """g v / |v| (Salimans and Kingma 2016): a norm does not change when zeros leave it."""
    v, g, dim = trace.of(args[0]), trace.of(args[1]), args[2] if len(args) > 2 else 0
    if not (v.constant and g.constant):
        return None
    made = Tracked(output[0].shape, v.labels, constant=True)
    v.scaled.add(dim)
    meet(trace, v, dim, g, dim, "weight norm")
    for d in v.dims():
        labels = v.labels[d]
        if d != dim and labels is not None:
            zero = zero_slices(args[0], v, d)
            trace.pin_values(labels[~zero], "the weight's norm is over it")
    trace.put(output[0], made)
    trace.put(output[1], Tracked(output[1].shape, constant=True))

    def back() -> None:
        v.used = g.used = made.used
        for d in v.dims():
            v.want(d, made.flow(d))

    return back


_Function = Callable[..., Back | None]
_GROUPS: dict[_Function, str] = {
    _weight_norm: "_weight_norm_interface",
    _bilinear: "_trilinear",
    _attention: "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention "
    "_scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention",
    _embedding: "embedding",
}
RULES: dict[str, Rule] = {name: rule for rule, names in _GROUPS.items() for name in names.split()}
