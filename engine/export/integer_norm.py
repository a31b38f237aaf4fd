"""Batch norms that an exported graph still has, folded into the integer layers before them.

``integer_layers.py`` folds those that are modules of their own. In a graph one is found wherever it
comes from: a function in a forward, a norm that has an activation inside, a model that cannot be
traced symbolically. Scales of channels and biases change, integers do not.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx, nn

from engine.export.integer_bias import CONVOLUTIONS, LINEAR, attribute, inputs_of
from engine.export.integer_graph import is_integer_weight
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
    if layer.target not in CONVOLUTIONS and layer.target is not LINEAR:
        return False
    weight, bias = inputs_of(layer)[1:]
    read_once = len(layer.users) == 1 and is_integer_weight(weight) and len(weight.users) == 1
    if not read_once or not all(len(part.users) == 1 for part in _stored(weight)):
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
    held = _held(module, weight)
    form = AffineForm(held.scale, held.zero_point, *held.limits, held.axis, None)
    folded = integer_weight(held.dequantized(), form, factor, channel_axis=0)
    before = _tensor(module, bias)
    shift = (-mean if before is None else before - mean) * factor
    _put(module, layer, weight, folded, shift if beta is None else beta + shift)
    for result in list(norm.users):
        result.replace_all_uses_with(layer)
        module.graph.erase_node(result)
    module.graph.erase_node(norm)


def _held(module: fx.GraphModule, weight: fx.Node) -> IntegerWeight:
    """Return what a dequantize of a weight reads."""
    values = attribute(module, weight.args[0])
    if weight.target is _OPS.dequantize_per_channel.default:
        axis: Any = weight.args[3]
        scale, zero_point = (attribute(module, part) for part in weight.args[1:3])
        return IntegerWeight(values, scale, zero_point, axis, None)
    single: Any = weight.args[1:3]
    return IntegerWeight(values, torch.tensor(single[0]), torch.tensor(single[1]), None, None)


def _put(
    module: fx.GraphModule, layer: fx.Node, weight: fx.Node, folded: IntegerWeight, bias: Tensor
) -> None:
    """Let ``layer`` read the folded weight, under the weight's name, and the folded bias."""
    stored: Any = weight.args[0]
    parent, _, own = str(stored.target).rpartition(".")
    values = nn.Parameter(folded.values.to(bias.device), requires_grad=False)
    module.get_submodule(parent)._parameters[own] = values
    parts = {"scale": folded.scale, "zero_point": folded.zero_point, "bias": bias}
    for name, value in parts.items():
        module.register_buffer(f"folded_{name}_{layer.name}", value.to(bias.device))
    with module.graph.inserting_before(layer):
        scale, zero_point, read_bias = (
            module.graph.get_attr(f"folded_{name}_{layer.name}") for name in parts
        )
        dequantized = module.graph.call_function(
            _OPS.dequantize_per_channel.default,
            (stored, scale, zero_point, folded.axis, *folded.limits, folded.values.dtype),
        )
    layer.args = (layer.args[0], dequantized, read_bias, *layer.args[3:])
    layer.kwargs = {key: value for key, value in layer.kwargs.items() if key != "bias"}


def _stored(weight: fx.Node) -> list[fx.Node]:
    return [part for part in weight.args if isinstance(part, fx.Node)]


def _tensor(module: fx.GraphModule, node: Any) -> Tensor | None:
    return None if node is None else attribute(module, node).detach().float()
