"""Which operators of an exported graph compute with integers, and why the others do not."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from engine.export.integer_bias import CONVOLUTIONS, FLOAT_BIAS, LINEAR, TRANSPOSED, inputs_of
from engine.export.integer_graph import (
    ADD,
    is_dequantize,
    is_integer_weight,
    is_quantize,
    joined,
    last_of_kernel,
    writes_integers,
)
from engine.quantization.placement import (
    FLOAT_INPUT,
    FLOAT_OUTPUT,
    FLOAT_READER,
    FLOAT_TERM,
    SEVERAL_GRIDS,
    Placement,
)

_ATEN: Any = torch.ops.aten
_PRODUCTS = {
    _ATEN.matmul.default,
    _ATEN.mm.default,
    _ATEN.bmm.default,
    _ATEN.addmm.default,
    _ATEN.baddbmm.default,
    _ATEN.einsum.default,
    _ATEN.scaled_dot_product_attention.default,
}
_RECURRENT = {
    _ATEN.lstm.input,
    _ATEN.gru.input,
    _ATEN.rnn_tanh.input,
    _ATEN.rnn_relu.input,
}


def placements(graph: fx.Graph) -> list[Placement]:
    """Return whatever multiplies matrices, and sums of two tensors, in the order of execution."""
    found = []
    for node in graph.nodes:
        if node.target in CONVOLUTIONS:
            reason = _weighted(node) or _output(node)
            found.append(Placement(_layer(node), "convolution", not reason, reason))
        elif node.target in TRANSPOSED:
            reason = "transposed convolutions have no integer kernel"
            found.append(Placement(_layer(node), "convolution", False, reason))
        elif node.target is LINEAR:
            reason = _weighted(node)
            found.append(Placement(_layer(node), "linear", not reason, reason))
        elif node.target is ADD and all(part is not None for part in joined(node)):
            floats = [part for part in joined(node) if not is_dequantize(part)]
            reason = FLOAT_TERM if floats else _output(node)
            found.append(Placement(_layer(node), "add", not reason, reason))
        elif node.target in _PRODUCTS:
            reason = "only products of layers have integer kernels"
            found.append(Placement(_layer(node), "product", False, reason))
        elif node.target in _RECURRENT:
            reason = "recurrent layers have no integer kernel"
            found.append(Placement(_layer(node), "recurrent", False, reason))
    return found


def _weighted(node: fx.Node) -> str:
    source, weight, _ = inputs_of(node)
    if not is_integer_weight(weight):
        plain = isinstance(weight, fx.Node) and weight.op == "get_attr"
        return "the weight is not quantized" if plain else "scales of groups have no kernel"
    return "" if is_dequantize(source) else FLOAT_INPUT


def _output(node: fx.Node) -> str:
    last = last_of_kernel(node)
    if node.target in CONVOLUTIONS and _adds_bias(node):
        return "the bias fits on no grid of the layer's sums"
    if not writes_integers(node):
        grids = sum(map(is_quantize, last.users))
        if grids > 1:
            return SEVERAL_GRIDS
        return FLOAT_READER if grids else FLOAT_OUTPUT
    return ""


def _adds_bias(node: fx.Node) -> bool:
    """Return whether all that reads ``node`` adds its bias to it; see ``integer_bias.py``."""
    users = list(node.users)
    if len(users) != 1 or users[0].target is not ADD:
        return False
    return str(users[0].args[1]).startswith(FLOAT_BIAS)


def _layer(node: fx.Node) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    names = [str(name) for name, _ in stack.values()]
    return names[-1] if names else ""
