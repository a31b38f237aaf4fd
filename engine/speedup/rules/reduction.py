"""Operators that reduce dimensions, and spatial ones that leave the channels alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from engine.speedup.nested import tensors_given
from engine.speedup.records import Back
from engine.speedup.trace import Rule, Trace
from engine.speedup.tracked import Tracked
from engine.speedup.zeros import zero_slices

_REDUCTIONS = [
    "mean",
    "sum",
    "amax",
    "amin",
    "max",
    "min",
    "any",
    "all",
    "prod",
    "var",
    "std",
    "var_mean",
    "norm",
    "linalg_vector_norm",
    "logsumexp",
    "argmax",
    "argmin",
]
#: Operators whose result is the same without elements that are zero.
_ZEROS_ADD_NOTHING = frozenset({"sum", "norm", "linalg_vector_norm", "any"})
_SPATIAL = [
    "max_pool2d_with_indices",
    "max_pool3d_with_indices",
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
    "_adaptive_avg_pool2d",
    "_adaptive_avg_pool3d",
    "adaptive_max_pool2d",
    "adaptive_max_pool3d",
    "max_pool1d",
    "adaptive_avg_pool1d",
    "upsample_nearest1d",
    "upsample_nearest2d",
    "upsample_nearest3d",
    "_upsample_nearest_exact2d",
    "upsample_linear1d",
    "upsample_bilinear2d",
    "upsample_bicubic2d",
    "upsample_trilinear3d",
    "_upsample_bilinear2d_aa",
    "_upsample_bicubic2d_aa",
    "reflection_pad1d",
    "reflection_pad2d",
    "reflection_pad3d",
    "replication_pad1d",
    "replication_pad2d",
    "replication_pad3d",
    "grid_sampler_2d",
]


def _reduce(
    trace: Trace, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any
) -> Back | None:
    x = trace.of(args[0])
    rank = len(x.shape)
    schema = [argument.name for argument in func._schema.arguments]
    bound = {**dict(zip(schema, args, strict=False)), **kwargs}
    given = bound.get("dim")
    if given is None or given == []:
        dims = list(range(rank))
    else:
        dims = [d % rank for d in (given if isinstance(given, list | tuple) else [given])]
    keep = bool(bound.get("keepdim", False))
    name = func._schema.name.removeprefix("aten::")
    left = [None if d in dims else d for d in range(rank) if keep or d not in dims]
    exact = name in _ZEROS_ADD_NOTHING
    zeros = {d: (zero_slices(args[0], x, d) | trace.planning) & exact for d in dims}
    outputs: list[Tracked] = []
    for tensor in tensors_given((output,), {}):
        if tensor.dim() != len(left):
            return None
        made = Tracked(
            tensor.shape,
            [None if d is None else x.labels[d] for d in left],
            [None if d is None or x.labels[d] is None else x.flags(d) for d in left],
            constant=x.constant,
        )
        outputs.append(trace.put(tensor, made))

    def back() -> None:
        for made in outputs:
            if made.used:
                x.used = True
                for d in dims:
                    x.want(d, True)
                    _pin_reduced(trace, x, d, zeros[d], f"{name} is over it")
                for e, kept in enumerate(left):
                    if kept is not None:
                        x.want(kept, made.flow(e))

    return back


def _pin_reduced(trace: Trace, x: Tracked, dim: int, zeros: Tensor, reason: str) -> None:
    labels = x.labels[dim]
    if labels is not None and not bool(zeros.all()):
        trace.labels.pin(labels[~zeros], reason)


def spatial(
    trace: Trace, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any
) -> Back | None:
    """Keep batch and channels apart, (batch, channels, ...) -> (batch, channels, ...)."""
    x = trace.of(args[0])
    others = [trace.of(t) for t in tensors_given(args[1:], kwargs)]
    rank = len(x.shape)
    trace.pin(x, "a position, not a channel", range(2, rank))
    outputs = []
    for tensor in tensors_given((output,), {}):
        if tensor.dim() != rank:
            return None
        made = Tracked(
            tensor.shape,
            [x.labels[d] if d < 2 else None for d in range(rank)],
            [x.flags(d) if d < 2 and x.labels[d] is not None else None for d in range(rank)],
            constant=x.constant and all(t.constant for t in others),
        )
        outputs.append(trace.put(tensor, made))

    def back() -> None:
        for made in outputs:
            if made.used and not made.constant:
                x.used = True
                for t in others:
                    t.used = True
                for d in x.dims():
                    x.want(d, made.flow(d) if d < 2 else True)

    return back


RULES: dict[str, Rule] = {
    **dict.fromkeys(_REDUCTIONS, _reduce),
    **dict.fromkeys(_SPATIAL, spatial),
}
