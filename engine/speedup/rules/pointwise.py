"""Operators that compute each element from the elements at its place, with broadcasting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from engine.speedup.tracer import Back, Rule, Tracer
from engine.speedup.tracked import Tracked

_NAMES = [
    "abs",
    "add",
    "addcdiv",
    "addcmul",
    "alias",
    "atan",
    "bitwise_and",
    "bitwise_not",
    "bitwise_or",
    "ceil",
    "celu",
    "clamp",
    "clamp_max",
    "clamp_min",
    "clone",
    "contiguous",
    "copy",
    "copysign",
    "cos",
    "detach",
    "div",
    "elu",
    "eq",
    "erf",
    "exp",
    "expm1",
    "fill",
    "floor",
    "floor_divide",
    "fmod",
    "ge",
    "gelu",
    "glu_none",
    "gt",
    "hardshrink",
    "hardsigmoid",
    "hardswish",
    "hardtanh",
    "isfinite",
    "isinf",
    "isnan",
    "le",
    "leaky_relu",
    "lerp",
    "lift_fresh",
    "log",
    "log1p",
    "log2",
    "log_sigmoid_forward",
    "logical_and",
    "logical_not",
    "logical_or",
    "logit",
    "lt",
    "masked_fill",
    "maximum",
    "minimum",
    "mish",
    "mul",
    "nan_to_num",
    "ne",
    "neg",
    "ones_like",
    "pow",
    "reciprocal",
    "relu",
    "relu6",
    "remainder",
    "round",
    "rsqrt",
    "rsub",
    "selu",
    "sigmoid",
    "sign",
    "silu",
    "sin",
    "softplus",
    "softshrink",
    "sqrt",
    "square",
    "sub",
    "tan",
    "tanh",
    "threshold",
    "to",
    "true_divide",
    "trunc",
    "where",
    "xlogy",
    "zero",
    "zeros_like",
    "_to_copy",
    "_prelu_kernel",
    "full_like",
    "empty_like",
    "rand_like",
    "randn_like",
    "bernoulli",
]
#: The same memory under another name.
_VIEWS = frozenset({"alias", "detach", "contiguous", "to", "lift_fresh"})
_PRODUCTS = frozenset({"mul", "bitwise_and", "logical_and"})
_FACTORIES = frozenset({"zeros_like", "ones_like", "full_like", "empty_like", "zero", "fill"})


def zero_slices(tensor: Tensor, tracked: Tracked, dim: int) -> Tensor:
    """Return which slices of ``dim`` are zero whatever the input is, bool (size,)."""
    dead = tracked.flags(dim)
    if not bool(dead.any()):
        return dead
    values = tensor.detach().movedim(dim, 0).reshape(tensor.shape[dim], -1)
    return dead & (values == 0).all(dim=1).cpu()


def pointwise(
    tracer: Tracer, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any
) -> Back | None:
    """Align the inputs' dimensions from the right and unite their labels."""
    outputs = [t for t in tree_leaves(output) if isinstance(t, Tensor)]
    out = outputs[0]
    if any(t.shape != out.shape for t in outputs):
        return None
    name = func._schema.name.removeprefix("aten::").rstrip("_")
    tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    tracked = [tracer.of(t) for t in tensors]
    rank, is_product = out.dim(), name in _PRODUCTS
    made = Tracked(out.shape, constant=all(t.constant for t in tracked) or name in _FACTORIES)
    zeros: dict[tuple[int, int], Tensor] = {}
    for place in range(rank):
        members = [
            (i, t, place - rank + len(t.shape))
            for i, t in enumerate(tracked)
            if len(t.shape) >= rank - place and t.shape[place - rank] == out.shape[place] != 1
        ]
        labelled = [(t, dim, labels) for _, t, dim in members
                    if (labels := t.labels[dim]) is not None]  # fmt: skip
        if not labelled:
            continue
        for other in labelled[1:]:
            tracer.labels.unite(labelled[0][2], other[2])
        if len(labelled) < len(members):
            tracer.labels.pin(labelled[0][2], f"{name} combines it with a tensor of fixed size")
        dead = torch.full((out.shape[place],), True)
        here = {i for i, _, _ in members}
        for i, t in enumerate(tracked):
            if i not in here:
                dead &= t.constant
        for _, t, dim in members:
            dead &= t.flags(dim)
        if is_product:
            for i, t, dim in members:
                zeros[i, place] = zero_slices(tensors[i], t, dim)
                dead |= zeros[i, place]
        made.labels[place] = labelled[0][2]
        made.dead[place] = dead | (name in _FACTORIES)
        made.need[place] = torch.zeros(out.shape[place], dtype=torch.bool)
    for tensor in outputs:
        tracer.put(tensor, made)
        if name in _VIEWS:
            tracer.aliases.add(tensor, tensors[0])

    def back() -> None:
        flows = [made.flow(place) for place in range(rank)]
        if not made.used or made.constant or not all(bool(flow.any()) for flow in flows):
            return
        for i, t in enumerate(tracked):
            t.used = True
            for dim in t.dims():
                place = dim + rank - len(t.shape)
                flow = flows[place]
                if is_product:
                    for (other, where), zero in zeros.items():
                        if where == place and other != i:
                            flow = flow & ~zero
                t.want(dim, flow)

    return back


def _triangle(
    tracer: Tracer, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any
) -> Back | None:
    """triu and tril keep the order of rows and columns: those of one number go together."""
    known = tracer.of(args[0])
    rows, columns = known.labels[-2], known.labels[-1]
    if rows is not None and columns is not None and rows.shape == columns.shape:
        tracer.labels.unite(rows, columns)
    else:
        last = len(known.shape) - 1
        tracer.pin(known, "it is cut to a triangle", [last - 1, last])
    return pointwise(tracer, func, args, kwargs, output)


RULES: dict[str, Rule] = {
    **dict.fromkeys(_NAMES, pointwise),
    **dict.fromkeys(("triu", "tril"), _triangle),
}
