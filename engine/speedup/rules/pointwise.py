"""Operators that compute each element from the elements at its place, with broadcasting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from engine.speedup.nested import tensors_given
from engine.speedup.records import Back
from engine.speedup.trace import Rule, Trace
from engine.speedup.tracked import Tracked
from engine.speedup.zeros import zero_slices

_NAMES = [
    "_conj",
    "_conj_physical",
    "_prelu_kernel",
    "_to_copy",
    "abs",
    "acos",
    "acosh",
    "add",
    "addcdiv",
    "addcmul",
    "alias",
    "angle",
    "asin",
    "asinh",
    "atan",
    "atan2",
    "atanh",
    "bernoulli",
    "bitwise_and",
    "bitwise_left_shift",
    "bitwise_not",
    "bitwise_or",
    "bitwise_right_shift",
    "bitwise_xor",
    "ceil",
    "celu",
    "clamp",
    "clamp_max",
    "clamp_min",
    "clip",
    "clone",
    "complex",
    "conj",
    "conj_physical",
    "contiguous",
    "copy",
    "copysign",
    "cos",
    "cosh",
    "deg2rad",
    "detach",
    "digamma",
    "div",
    "elu",
    "empty_like",
    "eq",
    "erf",
    "erfc",
    "erfinv",
    "exp",
    "exp2",
    "expm1",
    "exponential",
    "fill",
    "float_power",
    "floor",
    "floor_divide",
    "fmax",
    "fmin",
    "fmod",
    "frac",
    "full_like",
    "ge",
    "gelu",
    "gt",
    "hardshrink",
    "hardsigmoid",
    "hardswish",
    "hardtanh",
    "heaviside",
    "hypot",
    "i0",
    "imag",
    "isfinite",
    "isinf",
    "isnan",
    "isneginf",
    "isposinf",
    "le",
    "leaky_relu",
    "lerp",
    "lgamma",
    "lift_fresh",
    "log",
    "log10",
    "log1p",
    "log2",
    "log_sigmoid_forward",
    "logaddexp",
    "logaddexp2",
    "logical_and",
    "logical_not",
    "logical_or",
    "logical_xor",
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
    "nextafter",
    "normal",
    "ones_like",
    "polar",
    "pow",
    "rad2deg",
    "rand_like",
    "randn_like",
    "random",
    "real",
    "reciprocal",
    "relu",
    "relu6",
    "remainder",
    "resolve_conj",
    "round",
    "rrelu_with_noise",
    "rsqrt",
    "rsub",
    "selu",
    "sgn",
    "sigmoid",
    "sign",
    "signbit",
    "silu",
    "sin",
    "sinc",
    "sinh",
    "softplus",
    "softshrink",
    "special_entr",
    "special_expit",
    "special_log1p",
    "special_xlog1py",
    "sqrt",
    "square",
    "sub",
    "tan",
    "tanh",
    "threshold",
    "to",
    "true_divide",
    "trunc",
    "uniform",
    "where",
    "xlogy",
    "zero",
    "zeros_like",
]
#: The same memory under another name.
_VIEWS = frozenset({"alias", "detach", "contiguous", "to", "lift_fresh"})
_PRODUCTS = frozenset({"mul", "bitwise_and", "logical_and"})
#: Zero where the first operand is.
_QUOTIENTS = frozenset({"div", "true_divide"})
_FACTORIES = frozenset({"zeros_like", "ones_like", "full_like", "empty_like", "zero", "fill"})


def pointwise(
    trace: Trace, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any
) -> Back | None:
    """Align the inputs' dimensions from the right and unite their labels."""
    outputs = tensors_given((output,), {})
    out = outputs[0]
    if any(t.shape != out.shape for t in outputs):
        return None
    name = func._schema.name.removeprefix("aten::").rstrip("_")
    tensors = tensors_given(args, kwargs)
    tracked = [trace.of(t) for t in tensors]
    rank, is_product = out.dim(), name in _PRODUCTS | _QUOTIENTS
    factors = tensors[:1] if name in _QUOTIENTS else tensors
    made = Tracked(out.shape, constant=all(t.constant for t in tracked) or name in _FACTORIES)
    if len(tensors) == 1 and tracked[0].shape == made.shape and name not in _FACTORIES:
        return _alone(trace, name, tensors[0], outputs)
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
            trace.labels.unite(labelled[0][2], other[2])
        if len(labelled) < len(members):
            trace.labels.pin(labelled[0][2], f"{name} combines it with a tensor of fixed size")
        dead = torch.full((out.shape[place],), True)
        here = {i for i, _, _ in members}
        for i, t in enumerate(tracked):
            if i not in here:
                dead &= t.constant
        for _, t, dim in members:
            dead &= t.flags(dim)
        if is_product:
            for i, t, dim in [each for each in members if each[0] < len(factors)]:
                zeros[i, place] = zero_slices(tensors[i], t, dim)
                dead |= zeros[i, place]
        made.labels[place] = labelled[0][2]
        made.dead[place] = dead | (name in _FACTORIES)
    for tensor in outputs:
        trace.put(tensor, made)
        if name in _VIEWS:
            trace.aliases.add(tensor, tensors[0])

    out_shape = tuple(out.shape)

    def back() -> None:
        flows = [made.flow(place) for place in range(rank)]
        if not made.used or made.constant or not all(bool(flow.any()) for flow in flows):
            return
        for i, t in enumerate(tracked):
            t.used = True
            for dim in t.dims():
                place = dim + rank - len(t.shape)
                flow = flows[place]
                if t.shape[dim] != out_shape[place]:  # one slice, for all of them
                    t.want(dim, bool(flow.any()))
                    continue
                if is_product:
                    for (other, where), zero in zeros.items():
                        if where == place and other != i:
                            flow = flow & ~zero
                t.want(dim, flow)

    return back


def _alone(trace: Trace, name: str, tensor: Tensor, outputs: Sequence[Tensor]) -> Back:
    """Let outputs be what one input of their shape is."""
    x = trace.of(tensor)
    made = Tracked(x.shape, x.labels, x.dead, constant=x.constant)
    for output in outputs:
        trace.put(output, made)
        if name in _VIEWS:
            trace.aliases.add(output, tensor)

    def back() -> None:
        if made.used and not made.constant:
            flows = [made.flow(dim) for dim in x.dims()]
            if all(bool(flow.any()) for flow in flows):
                x.used = True
                for dim, flow in zip(x.dims(), flows, strict=True):
                    x.want(dim, flow)

    return back


def _triangle(
    trace: Trace, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any
) -> Back | None:
    """triu and tril keep the order of rows and columns: those of one number go together."""
    known = trace.of(args[0])
    rows, columns = known.labels[-2], known.labels[-1]
    if rows is not None and columns is not None and rows.shape == columns.shape:
        trace.labels.unite(rows, columns)
    else:
        last = len(known.shape) - 1
        trace.pin(known, "it is cut to a triangle", [last - 1, last])
    return pointwise(trace, func, args, kwargs, output)


RULES: dict[str, Rule] = {
    **dict.fromkeys(_NAMES, pointwise),
    **dict.fromkeys(("triu", "tril"), _triangle),
}
