"""Activations that only clip, as limits of the integers that are written behind them.

Rounding keeps order, so that ``Q(clip(x, a, b)) = clip(Q(x), Q(a), Q(b))``: the quantize behind a
ReLU or ReLU6 can clip in its place, exactly. Runtimes look for the quantize right behind a
convolution, and drop a clip in between only where a whole 8-bit type is used.
"""

from __future__ import annotations

from typing import Any

from torch import fx

from engine.export.integer_graph import CLIPS, RELU, RELU6, is_quantize, settings_of

_INFINITY = float("inf")


def absorb_clips(graph: fx.Graph) -> None:
    """Let quantizes clip in the place of the activations that they alone read.

    An activation whose limits are no numbers stays. Values of the graph do not change.
    """
    for node in list(graph.nodes):
        limits = clip_limits(node)
        if limits is None or not node.users or not all(map(is_quantize, node.users)):
            continue
        for quantize in list(node.users):
            _narrow(quantize, *limits)
        node.replace_all_uses_with(node.args[0])
        graph.erase_node(node)


def clip_limits(node: fx.Node) -> tuple[float, float] | None:
    """Return the least and the largest value that an activation lets through; None of another."""
    if node.target is RELU:
        return 0.0, _INFINITY
    if node.target is RELU6:
        return 0.0, 6.0
    if node.target not in CLIPS:
        return None
    missing = (-1.0, 1.0) if "hardtanh" in str(node.target) else (None, None)
    given: list[Any] = [
        node.args[place] if len(node.args) > place else node.kwargs.get(name, default)
        for place, name, default in zip((1, 2), ("min", "max"), missing, strict=True)
    ]
    if not all(end is None or isinstance(end, (int, float)) for end in given):
        return None
    low, high = given
    return (-_INFINITY if low is None else float(low)), (_INFINITY if high is None else float(high))


def _narrow(quantize: fx.Node, low: float, high: float) -> None:
    """Let the integers of ``quantize``, and of who reads it, be those of [low, high]."""
    scale, zero_point, qmin, qmax, dtype = settings_of(quantize)

    def integer(value: float) -> int:
        if value in (-_INFINITY, _INFINITY):
            return int(qmin if value < 0 else qmax)
        return int(min(max(round(value / scale) + zero_point, qmin), qmax))

    settings = (scale, zero_point, integer(low), integer(high), dtype)
    for node in (quantize, *quantize.users):
        node.args = (node.args[0], *settings)
