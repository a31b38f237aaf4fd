"""Biases of integer layers as 32-bit integers on the grid of the layer's sums.

Jacob et al. 2018, arXiv 1712.05877, section 2.4: scale ``S1 S2`` of weight and input, zero point 0.
"""

from __future__ import annotations

from functools import reduce
from typing import Any

import torch
from torch import Tensor, fx, nn

from engine.export.bias_grid import FittedScale, fitted
from engine.export.integer_graph import (
    is_dequantize,
    is_integer_weight,
    last_of_kernel,
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
#: How the buffer of a bias begins that is added to a convolution's output in float.
FLOAT_BIAS = "float_bias_"


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
    output's; where it is not, or the bias takes more than 30 bits, the channel's weight scale says
    little and another is chosen (see ``bias_grid.py``). A bias that fits on no grid, and that of a
    linear layer that writes floats, is added to the layer's floats, unrounded. As the layer's own
    it would not stay float: ONNX Runtime rounds it while it loads the file.
    """
    graph = module.graph
    for node in list(graph.nodes):
        if node.target not in CONVOLUTIONS and node.target is not LINEAR:
            continue
        source, weight, bias = inputs_of(node)
        integer = is_dequantize(source) and is_integer_weight(weight)
        if not integer or not isinstance(bias, fx.Node) or bias.op != "get_attr":
            continue
        if writes_integers(node) and _quantize_bias(module, node):
            continue
        if node.target is LINEAR or writes_integers(node):
            _add_afterwards(module, node)
    graph.lint()
    graph.eliminate_dead_code()


def _add_afterwards(module: fx.GraphModule, node: fx.Node) -> None:
    """Add the bias of ``node`` to its output, in float."""
    graph, bias = module.graph, inputs_of(node)[2]
    name = f"{FLOAT_BIAS}{node.name}"
    value = attribute(module, bias).detach()
    spatial = (
        0 if node.target is LINEAR else attribute(module, inputs_of(node)[1].args[0]).dim() - 2
    )
    if spatial:
        module.register_buffer(name, value.view(-1, *[1] * spatial))
        with graph.inserting_before(node):
            bias = graph.get_attr(name)
    rest = node.args[3:]
    node.args = (*node.args[:2], None, *rest) if rest else node.args[:2]
    node.kwargs = {key: value for key, value in node.kwargs.items() if key != "bias"}
    with graph.inserting_after(node):
        added = graph.call_function(_ATEN.add.Tensor, (node, bias))
    node.replace_all_uses_with(added, delete_user_cb=lambda user: user is not added)


@torch.no_grad()
def _quantize_bias(module: fx.GraphModule, node: fx.Node) -> bool:
    """Put the bias of ``node`` on integers; return whether they hold it."""
    source, weight, bias = inputs_of(node)
    graph, value = module.graph, attribute(module, bias).detach()
    per_channel = weight.target is _OPS.dequantize_per_channel.default
    values = attribute(module, weight.args[0])
    of_source = float(settings_of(source)[0])
    of_output = min(float(settings_of(user)[0]) for user in last_of_kernel(node).users)
    if per_channel:
        scale, zero_point = (attribute(module, part) for part in weight.args[1:3])
        limits = weight.args[4:6]
    else:
        scale = torch.full_like(value, float(weight.args[1]), dtype=torch.float32)
        zero_point = torch.full_like(value, int(weight.args[2]), dtype=torch.int64)
        limits = weight.args[3:5]
    found = fitted(values, scale, zero_point, limits, value, of_source, of_output)
    if not found.fits:
        return False
    if found.changed:
        _rescale(module, node, found, zero_point)
    steps = (found.scale.double() * of_source).float().expand(value.shape)
    name = f"integer_bias_{node.name}"
    integers = (value.double() / steps.double()).round()
    module.register_buffer(name, integers.to(torch.int32))
    module.register_buffer(f"{name}_scale", steps.clone())
    module.register_buffer(f"{name}_zero_point", torch.zeros_like(integers, dtype=torch.int64))
    with graph.inserting_before(node):
        parts = [graph.get_attr(name + end) for end in ("", "_scale", "_zero_point")]
        ends = (torch.iinfo(torch.int32).min, torch.iinfo(torch.int32).max, torch.int32)
        dequantized = graph.call_function(_OPS.dequantize_per_channel.default, (*parts, 0, *ends))
    node.replace_input_with(bias, dequantized)
    return True


def _rescale(module: fx.GraphModule, node: fx.Node, found: FittedScale, zero_point: Tensor) -> None:
    """Let ``node`` read its weight on other scales; whoever else reads the weight does not."""
    weight: Any = inputs_of(node)[1]
    stored = weight.args[0]
    held = [n for n in module.graph.nodes if n.op == "get_attr" and n.target == stored.target]
    alone = len(weight.users) == 1 and sum(len(each.users) for each in held) == 1
    if alone:  # under its own name
        attribute(module, stored).copy_(found.values)
    else:
        module.register_buffer(f"fitted_weight_{node.name}", found.values)
    module.register_buffer(f"fitted_scale_{node.name}", found.scale)
    module.register_buffer(f"fitted_zero_point_{node.name}", zero_point.clone())
    *ends, dtype = weight.args[-3:]
    with module.graph.inserting_before(node):
        values = stored if alone else module.graph.get_attr(f"fitted_weight_{node.name}")
        grid = (
            module.graph.get_attr(f"fitted_{part}_{node.name}") for part in ("scale", "zero_point")
        )
        fresh = module.graph.call_function(
            _OPS.dequantize_per_channel.default, (values, *grid, 0, *ends, dtype)
        )
    fresh.meta = dict(weight.meta)
    node.replace_input_with(weight, fresh)
