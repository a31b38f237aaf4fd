"""Biases of integer layers as 32-bit integers on the grid of the layer's sums.

Jacob et al. 2018, arXiv 1712.05877, section 2.4: scale ``S1 S2`` of weight and input, zero point 0.
"""

from __future__ import annotations

from functools import reduce
from typing import Any

import torch
from torch import Tensor, fx, nn

from engine.export.integer_graph import (
    is_dequantize,
    is_integer_weight,
    settings_of,
    writes_integers,
)

_ATEN: Any = torch.ops.aten
_OPS: Any = torch.ops.quantized_decomposed
CONVOLUTIONS = {
    _ATEN.conv1d.default,
    _ATEN.conv2d.default,
    _ATEN.conv3d.default,
    _ATEN.conv1d.padding,
    _ATEN.conv2d.padding,
    _ATEN.conv3d.padding,
}
#: Runtimes have no integer kernels for these.
TRANSPOSED = {
    _ATEN.conv_transpose1d.default,
    _ATEN.conv_transpose2d.input,
    _ATEN.conv_transpose3d.input,
}
LINEAR = _ATEN.linear.default
#: A bias and a sum of products fit into 32 bits together.
_LARGEST = 2**30


def attribute(module: nn.Module, node: Any) -> Tensor:
    """Return the tensor that a ``get_attr`` node reads."""
    found: Any = reduce(getattr, str(node.target).split("."), module)
    return found  # type: ignore[no-any-return]


def inputs_of(node: fx.Node) -> tuple[Any, Any, Any]:
    """Return input, weight and bias of a convolution or linear layer; without a bias, None."""
    bias = node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")
    return node.args[0], node.args[1], bias


def quantize_biases(module: fx.GraphModule) -> None:
    """Give integer layers biases of integers where they write integers, and float ones elsewhere.

    An integer bias is rounded to the grid of the layer's sums, whose step is far below the
    output's. A linear layer that writes floats has its bias added to these, unrounded. A bias that
    needs more than 30 bits belongs to a channel whose weights are next to nothing: their scale is
    raised. With one scale for all channels it stays float.
    """
    graph = module.graph
    for node in list(graph.nodes):
        if node.target not in CONVOLUTIONS and node.target is not LINEAR:
            continue
        source, weight, bias = inputs_of(node)
        integer = is_dequantize(source) and is_integer_weight(weight)
        if not integer or not isinstance(bias, fx.Node) or bias.op != "get_attr":
            continue
        if writes_integers(node):
            _quantize_bias(module, node)
        elif node.target is LINEAR:
            node.args = (source, weight)
            node.kwargs = {}
            with graph.inserting_after(node):
                added = graph.call_function(_ATEN.add.Tensor, (node, bias))
            node.replace_all_uses_with(
                added, delete_user_cb=lambda user, own=added: user is not own
            )
    graph.lint()
    graph.eliminate_dead_code()


def _quantize_bias(module: fx.GraphModule, node: fx.Node) -> None:
    source, weight, bias = inputs_of(node)
    graph, value = module.graph, attribute(module, bias).detach()
    per_channel = weight.target is _OPS.dequantize_per_channel.default
    stored: Any = weight.args[1]
    of_weight = attribute(module, stored) if per_channel else torch.tensor(float(stored))
    of_source = settings_of(source)[0]
    least = value.abs().double() / (_LARGEST * of_source)
    raised = torch.maximum(of_weight.double(), least).float()
    if not torch.equal(raised, of_weight.expand(raised.shape)):
        if not per_channel:
            return
        _raise_scale(module, weight, raised)
        of_weight = raised
    scale = (of_weight.double() * of_source).float().expand(value.shape)
    name = f"integer_bias_{node.name}"
    integers = (value.double() / scale.double()).round()
    module.register_buffer(name, integers.to(torch.int32))
    module.register_buffer(f"{name}_scale", scale.clone())
    module.register_buffer(f"{name}_zero_point", torch.zeros_like(integers, dtype=torch.int64))
    with graph.inserting_before(node):
        parts = [graph.get_attr(name + end) for end in ("", "_scale", "_zero_point")]
        limits = (torch.iinfo(torch.int32).min, torch.iinfo(torch.int32).max, torch.int32)
        dequantized = graph.call_function(_OPS.dequantize_per_channel.default, (*parts, 0, *limits))
    node.replace_input_with(bias, dequantized)


@torch.no_grad()
def _raise_scale(module: fx.GraphModule, weight: Any, raised: Tensor) -> None:
    """Round the channels of an integer weight to larger scales, in place."""
    values, scale, zero_point = (attribute(module, part) for part in weight.args[:3])
    axis = weight.args[3]
    view = [-1 if dim == axis else 1 for dim in range(values.dim())]
    zeros = zero_point.view(view)
    steps = (values.to(torch.int64) - zeros) * (scale.double() / raised.double()).view(view)
    values.copy_((steps.round() + zeros).to(values.dtype))
    scale.copy_(raised)
