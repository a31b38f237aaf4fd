"""A norm or the like seen as one operator, not as those that it consists of."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from engine.speedup.records import Call
from engine.speedup.trace import Trace
from engine.speedup.tracked import Tracked
from engine.speedup.widen import Widened, constant_slices, join
from engine.speedup.zeros import zero_slices


def see_as_one(trace: Trace, module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
    """See a norm or the like as one operator, which can be given zeros for what is removed."""
    x, path = trace.of(args[0]), trace.path
    constant = constant_slices(module, args, kwargs, output, x, planning=trace.planning)
    reason = "its constant takes part in a norm's statistics"
    labels: dict[int, Tensor] = {}
    for dim in x.dims():
        mine = x.labels[dim]
        assert mine is not None
        labels[dim] = mine
        dead = x.flags(dim)
        trace.pin_values(mine[dead & ~zero_slices(args[0], x, dim)], reason)
        for tensor in [*module.parameters(), *module.buffers()]:
            if tensor.shape == mine.shape:
                number = trace.of(tensor)
                number.whole = True
                if number.labels[0] is not None:
                    trace.labels.unite(mine, number.labels[0])
    widened = Widened(module, path, len(x.shape), labels)
    if fault := join(trace.labels, trace.widened.get(path), widened):
        trace.pin(x, fault)
    trace.widened.setdefault(path, widened)
    made = trace.put(output, Tracked(x.shape, x.labels, [None] * len(x.shape)))
    made.constant = x.constant
    for dim, same in constant.items():
        made.dead[dim] = same

    def back() -> None:
        if made.used and not made.constant:
            x.used = True
            for dim in x.dims():
                x.want(dim, True)

    trace.calls.append(Call(0, type(module).__name__, path, [x], [made], back))
