"""Batch norms of an exported graph, folded into the integer layers before them.

An integer convolution has no place for one. In a graph one is found wherever it comes from: a
module, a function in a forward, a norm that has an activation inside. Scales of channels and biases
change, integers do not.
"""

from __future__ import annotations

import operator
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from engine.export.integer_bias import CONVOLUTIONS, LINEAR, TRANSPOSED, attribute, inputs_of
from engine.export.integer_graph import DEQUANTIZES
from engine.export.integer_weight import IntegerWeight, integer_weight
from engine.quantization.batch_norm import factor_of
from engine.quantization.form import AffineForm

_OPS: Any = torch.ops.quantized_decomposed
_NORM: Any = torch.ops.aten._native_batch_norm_legit_no_training.default


@torch.no_grad()
def fold_norms(module: fx.GraphModule) -> None:
    """Fold each batch norm that alone reads an integer convolution or linear layer, in place.

    A norm stays where the layer shares its weight, or its channels are not the norm's.
    """
    for norm in list(module.graph.nodes):
        layer = norm.args[0] if norm.target is _NORM else None
        if isinstance(layer, fx.Node) and _can_fold(layer, norm):
            _fold(module, layer, norm)
    module.graph.eliminate_dead_code()
    module.recompile()


def _can_fold(layer: fx.Node, norm: fx.Node) -> bool:
    if layer.target not in CONVOLUTIONS | TRANSPOSED and layer.target is not LINEAR:
        return False
    if layer.target in TRANSPOSED and _groups(layer) != 1:
        return False  # its channels lie along two axes of the weight
    weight, bias = inputs_of(layer)[1:]
    if len(layer.users) != 1 or _integers(weight) is None:
        return False
    plain_bias = bias is None or (isinstance(bias, fx.Node) and bias.op == "get_attr")
    # Of more dimensions a linear layer's channels are the last, the norm's the second.
    in_line = layer.target is not LINEAR or layer.meta["val"].dim() == 2
    first_of_several = all(u.target is operator.getitem and u.args[1] == 0 for u in norm.users)
    return plain_bias and in_line and first_of_several


def _fold(module: fx.GraphModule, layer: fx.Node, norm: fx.Node) -> None:
    _, weight, bias = inputs_of(layer)
    gamma, beta, mean, variance = (_tensor(module, part) for part in norm.args[1:5])
    assert mean is not None
    assert variance is not None
    eps: Any = norm.args[6]
    factor = factor_of(gamma, variance, eps)
    integers = _integers(weight)
    assert integers is not None
    channel_axis = int(layer.target in TRANSPOSED)
    held = _held(module, integers, channel_axis)
    form = AffineForm(held.scale, held.zero_point, *held.limits, held.axis, held.group_size)
    folded = integer_weight(held.dequantized(), form, factor, channel_axis)
    before = _tensor(module, bias)
    shift = (-mean if before is None else before - mean) * factor
    _put(module, layer, integers, folded, shift if beta is None else beta + shift)
    for result in list(norm.users):
        result.replace_all_uses_with(layer)
        module.graph.erase_node(result)
    module.graph.erase_node(norm)


class _Integers(NamedTuple):
    """Where a graph reads an integer weight: the parameter, and what makes floats of it.

    Weights with a scale for each group are laid out in rows of a group before that, and put
    together again afterwards.
    """

    stored: fx.Node
    dequantize: fx.Node


def _integers(weight: Any) -> _Integers | None:
    """Return how ``weight`` comes from integers that nothing else reads; None if it does not."""
    dequantize = None
    node = weight
    while isinstance(node, fx.Node) and node.op == "call_function":
        parts = [part for part in node.args if isinstance(part, fx.Node)]
        if any(len(part.users) != 1 for part in (node, *parts)):
            return None
        if node.target in DEQUANTIZES:
            dequantize = node
        elif len(parts) != 1:
            return None
        node = node.args[0]
    if dequantize is None or not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    return _Integers(node, dequantize)


def _held(module: fx.GraphModule, integers: _Integers, channel_axis: int) -> IntegerWeight:
    """Return the weight that ``integers`` are of."""
    dequantize = integers.dequantize
    values = attribute(module, integers.stored)
    if dequantize.target is not _OPS.dequantize_per_channel.default:
        single: Any = dequantize.args[1:3]
        return IntegerWeight(values, torch.tensor(single[0]), torch.tensor(single[1]), None, None)
    axis: Any = dequantize.args[3]
    scale, zero_point = (attribute(module, part) for part in dequantize.args[1:3])
    if dequantize.args[0] is integers.stored:
        return IntegerWeight(values, scale, zero_point, axis, None)
    channels = values.shape[channel_axis]
    rows: Any = dequantize.args[0]
    group_size = rows.meta["val"].shape[1]
    by_group = scale.reshape(channels, -1), zero_point.reshape(channels, -1)
    return IntegerWeight(values, *by_group, channel_axis, group_size)


def _put(
    module: fx.GraphModule, layer: fx.Node, old: _Integers, folded: IntegerWeight, bias: Tensor
) -> None:
    """Let ``layer`` read the folded weight, under the weight's name, and the folded bias."""
    parent, _, own = str(old.stored.target).rpartition(".")
    values = nn.Parameter(folded.values.to(bias.device), requires_grad=False)
    module.get_submodule(parent)._parameters[own] = values
    parts = {"scale": folded.scale, "zero_point": folded.zero_point, "bias": bias}
    for name, value in parts.items():
        flat = value.flatten().to(bias.device)
        module.register_buffer(f"folded_{name}_{layer.name}", flat)
    axis = folded.axis if folded.group_size is None else 0  # each group is a row
    with module.graph.inserting_before(old.dequantize):
        scale, zero_point, read_bias = (
            module.graph.get_attr(f"folded_{name}_{layer.name}") for name in parts
        )
        fresh = module.graph.call_function(
            _OPS.dequantize_per_channel.default,
            (old.dequantize.args[0], scale, zero_point, axis, *folded.limits, folded.values.dtype),
        )
    fresh.meta = dict(old.dequantize.meta)
    old.dequantize.replace_all_uses_with(fresh)
    module.graph.erase_node(old.dequantize)
    layer.args = (*layer.args[:2], read_bias, *layer.args[3:])
    layer.kwargs = {key: value for key, value in layer.kwargs.items() if key != "bias"}


def _groups(transposed: fx.Node) -> int:
    groups: Any = transposed.args[6] if len(transposed.args) > 6 else 1
    return int(transposed.kwargs.get("groups", groups))


def _tensor(module: fx.GraphModule, node: Any) -> Tensor | None:
    return None if node is None else attribute(module, node).detach().float()
