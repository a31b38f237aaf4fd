"""Operators that rename, add or drop whole dimensions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from engine.speedup.records import Back
from engine.speedup.trace import Rule, Trace
from engine.speedup.tracked import Tracked


def put_like(
    trace: Trace, tensor: Tensor, of: Tensor, dims: Sequence[int | None]
) -> tuple[Tracked, Back]:
    """Make an output whose dimension e is the input's ``dims[e]``, index for index."""
    source = trace.of(of)
    made = Tracked(
        tensor.shape,
        [None if d is None else source.labels[d] for d in dims],
        [None if d is None or source.labels[d] is None else source.flags(d) for d in dims],
        constant=source.constant,
    )
    made.base = source.base or (source if source.slots else None)
    trace.put(tensor, made)
    trace.aliases.add(tensor, of)

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


def together(backs: Sequence[Back]) -> Back:
    """Return what does all of ``backs``."""

    def back() -> None:
        for each in backs:
            each()

    return back


def _permute(
    trace: Trace, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], output: Tensor
) -> Back | None:
    name, rank = func._schema.name.removeprefix("aten::").rstrip("_"), args[0].dim()
    order = list(range(rank))
    if name == "permute":
        order = [d % rank for d in args[1]]
    elif name in ("transpose", "swapaxes"):
        a, b = args[1] % rank, args[2] % rank
        order[a], order[b] = order[b], order[a]
    elif rank == 2:
        order.reverse()
    return put_like(trace, output, args[0], order)[1]


def _unsqueeze(
    trace: Trace, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], output: Tensor
) -> Back | None:
    # In place, the tensor has its new shape by now; what is known of it has the old one.
    dims: list[int | None] = list(range(len(trace.of(args[0]).shape)))
    dims.insert(args[1] % output.dim(), None)
    return put_like(trace, output, args[0], dims)[1]


def _expand(
    trace: Trace, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], output: Tensor
) -> Back | None:
    shift = output.dim() - args[0].dim()
    dims = [
        e - shift if e >= shift and args[0].shape[e - shift] == output.shape[e] else None
        for e in range(output.dim())
    ]
    made, back = put_like(trace, output, args[0], dims)
    source = trace.of(args[0])
    for e, d in enumerate(dims):
        # Copies of one slice: as many as are asked for, if the code's number can be changed.
        if d is None and output.shape[e] > 1:
            labels = trace.labels.fresh(output.shape[e])
            trace.copies.add(int(labels[0]))
            made.labels[e] = labels
            made.dead[e] = torch.full((output.shape[e],), source.constant)
            trace.ask(output.shape[e], labels, e, output.dim())
    return back


def _select(
    trace: Trace, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], output: Tensor
) -> Back | None:
    source, dim = trace.of(args[0]), args[1] % args[0].dim()
    trace.pin(source, "one index of it is selected", [dim])
    return put_like(trace, output, args[0], [d for d in range(args[0].dim()) if d != dim])[1]


def _unbind(
    trace: Trace, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any
) -> Back | None:
    dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % args[0].dim()
    source = trace.of(args[0])
    trace.pin(source, "its indices are taken apart", [dim])
    dims = [d for d in range(args[0].dim()) if d != dim]
    return together([put_like(trace, t, args[0], dims)[1] for t in output])


def _repeat(
    trace: Trace, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], output: Tensor
) -> Back | None:
    source, times = trace.of(args[0]), args[1]
    shift = len(times) - args[0].dim()
    if any(times[d + shift] != 1 for d in source.dims()):
        return None
    dims = [e - shift if e >= shift and times[e] == 1 else None for e in range(output.dim())]
    return put_like(trace, output, args[0], dims)[1]


def _unfold(
    trace: Trace, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], output: Tensor
) -> Back | None:
    """Windows along one dimension, which becomes two; the others stay."""
    rank, dim = args[0].dim(), args[1] % args[0].dim()
    trace.pin(trace.of(args[0]), "windows are taken along it", [dim])
    dims = [None if d == dim else d for d in range(rank)]
    return put_like(trace, output, args[0], [*dims, None])[1]


def _complex(
    trace: Trace, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], output: Tensor
) -> Back | None:
    """Real and imaginary part: a last dimension of two comes or goes."""
    shared = min(args[0].dim(), output.dim())
    dims: list[int | None] = list(range(shared))
    if output.dim() > shared:
        dims.append(None)
    else:
        trace.pin(trace.of(args[0]), "it is the two parts of a complex number", [shared])
    return put_like(trace, output, args[0], dims)[1]


def _fourier(
    trace: Trace, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], output: Tensor
) -> Back | None:
    """A transform over some dimensions, each slice of the others by itself; of zeros it is zero."""
    rank, transformed = args[0].dim(), {d % args[0].dim() for d in args[1]}
    trace.pin(trace.of(args[0]), "a Fourier transform is over it", list(transformed))
    dims = [None if d in transformed else d for d in range(rank)]
    made, back = put_like(trace, output, args[0], dims)
    made.base = None  # values of its own, not the same ones seen otherwise
    return back


_Function = Callable[..., Back | None]
_GROUPS: dict[_Function, str] = {
    _permute: "permute transpose swapaxes t numpy_T",
    _unsqueeze: "unsqueeze",
    _expand: "expand",
    _select: "select",
    _unbind: "unbind",
    _repeat: "repeat",
    _unfold: "unfold",
    _fourier: "_fft_r2c _fft_c2c _fft_c2r",
    _complex: "view_as_complex view_as_real",
}
RULES: dict[str, Rule] = {name: rule for rule, names in _GROUPS.items() for name in names.split()}
