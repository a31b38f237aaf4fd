"""Norms: batch norm works channel by channel, the others over all that they normalize."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from engine.speedup.records import Back
from engine.speedup.trace import Rule, Trace
from engine.speedup.tracked import Tracked


def _batch_norm(
    trace: Trace, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any
) -> Back | None:
    x = trace.of(args[0])
    numbers = [(t, trace.of(t)) for t in args[1:5] if isinstance(t, Tensor)]
    out = output[0]
    labels = x.labels[1]
    dead = x.flags(1).clone()
    weight = args[1]
    if isinstance(weight, Tensor) and trace.of(weight).constant and not trace.planning:
        dead |= (weight == 0).cpu()
    for _, t in numbers:
        if labels is not None and t.labels and t.labels[0] is not None:
            trace.join(t, 0, labels)
        else:
            trace.pin(t, "the norm's input is fixed")
            if labels is not None:
                trace.labels.pin(labels, "the norm's numbers are fixed")
    made = Tracked(
        out.shape,
        x.labels,
        [dead if d == 1 and labels is not None else x.dead[d] for d in range(len(x.shape))],
        constant=x.constant,
    )
    trace.put(out, made)
    for extra in tree_leaves(output[1:]):
        if isinstance(extra, Tensor):
            trace.put(extra, Tracked(extra.shape, constant=True))

    def back() -> None:
        if made.used and not made.constant:
            x.used = True
            for dim in x.dims():
                x.want(dim, made.flow(dim))

    return back


def _whole(
    trace: Trace, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any
) -> Back | None:
    """Layer and group norm: the statistics are over what would be removed, so nothing is."""
    x = trace.of(args[0])
    name = func._schema.name.removeprefix("aten::native_")
    rank = len(x.shape)
    normalized = (
        list(range(rank - len(args[1]), rank)) if name == "layer_norm" else list(range(1, rank))
    )
    inputs = [trace.of(t) for t in args if isinstance(t, Tensor)]
    reason = f"{name} takes its statistics over it"
    trace.pin(x, reason, normalized)
    for t in inputs[1:]:
        trace.pin(t, reason)
    out = output[0]
    made = Tracked(
        out.shape,
        [None if d in normalized else x.labels[d] for d in range(rank)],
        [None if d in normalized or x.labels[d] is None else x.flags(d) for d in range(rank)],
        constant=x.constant,
    )
    trace.put(out, made)
    for extra in output[1:]:
        trace.put(extra, Tracked(extra.shape, constant=x.constant))

    def back() -> None:
        if made.used and not made.constant:
            for t in inputs:
                t.used = True
                for dim in t.dims():
                    t.want(dim, True)
            for dim in x.dims():
                if dim not in normalized:
                    x.want(dim, made.flow(dim))

    return back


def _along_dimension(
    trace: Trace, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any
) -> Back | None:
    """Softmax, cumulative sums and sorting: all of one dimension together."""
    x = trace.of(args[0])
    rank = len(x.shape)
    names = [argument.name for argument in func._schema.arguments]
    given = {**dict(zip(names, args, strict=False)), **kwargs}.get("dim", -1)
    if any(tensor.dim() != rank for tensor in tree_leaves(output)):
        return None
    dim = given % rank if rank else 0
    name = func._schema.name.removeprefix("aten::")
    for tensor in tree_leaves(output):
        made = Tracked(
            tensor.shape,
            [None if d == dim else x.labels[d] for d in range(rank)],
            [None if d == dim or x.labels[d] is None else x.flags(d) for d in range(rank)],
            constant=x.constant,
        )
        trace.put(tensor, made)
    outputs = [trace.of(t) for t in tree_leaves(output)]

    def back() -> None:
        for made in outputs:
            if made.used:
                x.used = True
                x.want(dim, True)
                trace.pin(x, f"{name} is over it", [dim])
                for d in x.dims():
                    if d != dim:
                        x.want(d, made.flow(d))

    return back


RULES: dict[str, Rule] = {
    **dict.fromkeys(
        ("native_batch_norm", "_native_batch_norm_legit_no_training",
         "_native_batch_norm_legit", "cudnn_batch_norm", "_batch_norm_no_update"),
        _batch_norm,
    ),
    **dict.fromkeys(("native_layer_norm", "native_group_norm"), _whole),
    **dict.fromkeys(
        ("_softmax", "_log_softmax", "_safe_softmax", "cumsum", "cumprod", "sort", "cummax",
         "cummin", "topk", "kthvalue", "logcumsumexp"),
        _along_dimension,
    ),
}  # fmt: skip
