"""Pairs of quantize and dequantize in an exported graph, and rewritings that change no value.

Kernels are found by pattern: an integer convolution is ``DQ, DQ -> conv (-> relu) -> Q``. What a
quantizer has put on a grid often is on it a few operators further, too; saying so there lets a
kernel be found. Everything here is exact.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.ao.quantization.fx._decomposed  # defines torch.ops.quantized_decomposed
from torch import fx

from engine.export.selecting import keeps_values

_OPS: Any = torch.ops.quantized_decomposed
_ATEN: Any = torch.ops.aten
QUANTIZE = _OPS.quantize_per_tensor.default
DEQUANTIZE = _OPS.dequantize_per_tensor.default
DEQUANTIZES = {DEQUANTIZE, _OPS.dequantize_per_channel.default}

ADD = _ATEN.add.Tensor
_CAT = _ATEN.cat.default
#: Kernels of several activations.
JOINS = {ADD, _CAT}
RELU = _ATEN.relu.default
RELU6 = _ATEN.relu6.default
#: What an integer kernel does beside its own work, where its output's grid ends there.
CLIPS = {RELU, RELU6, _ATEN.hardtanh.default, _ATEN.clamp.default}


def is_quantize(node: object) -> bool:
    """Return whether ``node`` puts an activation on integers."""
    return isinstance(node, fx.Node) and node.target is QUANTIZE


def is_dequantize(node: object) -> bool:
    """Return whether ``node`` is an activation that comes from integers."""
    return isinstance(node, fx.Node) and node.target is DEQUANTIZE and is_quantize(node.args[0])


def is_integer_weight(node: object) -> bool:
    """Return whether ``node`` is a parameter or buffer that comes from integers."""
    if not isinstance(node, fx.Node) or node.target not in DEQUANTIZES:
        return False
    stored = node.args[0]
    return isinstance(stored, fx.Node) and stored.op == "get_attr"


def settings_of(node: fx.Node) -> tuple[Any, ...]:
    """Return scale, zero point, smallest and largest integer, and dtype of one of a pair."""
    return tuple(node.args[1:6])


def last_of_kernel(node: fx.Node) -> fx.Node:
    """Return the clipping behind ``node`` that its kernel does as well, or ``node``."""
    users = list(node.users)
    return users[0] if len(users) == 1 and users[0].target in CLIPS else node


def writes_integers(node: fx.Node) -> bool:
    """Return whether what ``node`` computes is put on one grid, and read from that alone."""
    last = last_of_kernel(node)
    return len(last.users) == 1 and all(map(is_quantize, last.users))


def joined(node: fx.Node) -> list[Any]:
    """Return the activations that a sum or a concatenation joins; None for anything else in it."""
    parts: Any = node.args[:2] if node.target is ADD else node.args[0]
    return [p if isinstance(p, fx.Node) and p.op != "get_attr" else None for p in parts]


def insert_pair(
    graph: fx.Graph, source: fx.Node, settings: tuple[Any, ...], users: Iterable[fx.Node]
) -> fx.Node:
    """Let ``users`` read ``source`` through a quantize and a dequantize; return the latter."""
    with graph.inserting_after(source):
        quantize = graph.call_function(QUANTIZE, (source, *settings))
    with graph.inserting_after(quantize):
        dequantize = graph.call_function(DEQUANTIZE, (quantize, *settings))
    for node in (quantize, dequantize):
        node.meta = {key: source.meta[key] for key in ("nn_module_stack",) if key in source.meta}
    for user in list(users):
        user.replace_input_with(source, dequantize)
    return dequantize


def make_explicit(graph: fx.Graph) -> None:
    """State grids wherever values are on them, each of them once."""
    for node in list(graph.nodes):
        if node.target is RELU:
            _sink_below(graph, node)
    for node in reversed(list(graph.nodes)):
        _raise_above(graph, node)
    for node in list(graph.nodes):
        if keeps_values(node) and is_dequantize(node.args[0]):
            floats = [user for user in node.users if not is_quantize(user)]
            if floats:
                insert_pair(graph, node, settings_of(node.args[0]), floats)
    merge_equal(graph)
    for node in list(graph.nodes):
        if is_quantize(node) and _is_never_negative(node.args[0]):
            _drop_negative(node)
    merge_equal(graph)
    graph.eliminate_dead_code()


def merge_equal(graph: fx.Graph) -> None:
    """Let equal quantizes of one tensor, and equal dequantizes of those, be one."""
    for node in list(graph.nodes):
        for wanted in (QUANTIZE, DEQUANTIZE):
            kept: dict[tuple[Any, ...], fx.Node] = {}
            # In the graph's order: one that was put in later may stand before its elders.
            for user in sorted(user for user in node.users if user.target is wanted):
                first = kept.setdefault(settings_of(user), user)
                if first is not user:
                    user.replace_all_uses_with(first)
                    graph.erase_node(user)


def _sink_below(graph: fx.Graph, relu: fx.Node) -> None:
    """Round after ``relu`` in place of before: 0 is on the grid, so the order does not matter."""
    rounded: Any = relu.args[0]
    if not is_dequantize(rounded) or len(rounded.users) > 1:
        return
    quantize = rounded.args[0]
    if len(quantize.users) > 1 or all(is_quantize(user) for user in relu.users):
        return
    relu.replace_input_with(rounded, quantize.args[0])
    insert_pair(graph, relu, settings_of(rounded), list(relu.users))
    graph.erase_node(rounded)
    graph.erase_node(quantize)


def _raise_above(graph: fx.Graph, node: fx.Node) -> None:
    """Round before ``node`` as well, where it only selects values: rounding keeps their order."""
    if node.target is RELU or not (keeps_values(node) or node.target is _CAT):
        return
    users = list(node.users)
    if not users or not all(map(is_quantize, users)) or len(set(map(settings_of, users))) > 1:
        return
    for source in joined(node) if node.target is _CAT else [node.args[0]]:
        if isinstance(source, fx.Node) and source.op != "get_attr" and not is_dequantize(source):
            insert_pair(graph, source, settings_of(users[0]), [node])


def _is_never_negative(node: Any) -> bool:
    while isinstance(node, fx.Node) and keeps_values(node):
        if node.target is RELU:
            return True
        node = node.args[0]
    bounded = (_ATEN.hardtanh.default, _ATEN.clamp.default)
    if not isinstance(node, fx.Node):
        return False
    if node.target in bounded and len(node.args) > 1:
        low = node.args[1]
        return isinstance(low, (int, float)) and low >= 0
    return node.target in (_ATEN.sigmoid.default, RELU6, _ATEN.hardsigmoid.default)


def _drop_negative(quantize: fx.Node) -> None:
    """Count from the zero point: integers below it are of no use, and kernels want it to be 0."""
    scale, zero_point, _, high, dtype = settings_of(quantize)
    settings = (scale, 0, 0, high - zero_point, dtype)
    if zero_point == 0 or high <= zero_point:
        return
    for node in (quantize, *quantize.users):
        node.args = (node.args[0], *settings)
