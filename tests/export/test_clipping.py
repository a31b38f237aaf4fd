"""Activations that clip become limits of integers: exact, and kernels are found across them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from integers import program_of, quantized, run_file
from torch import fx, nn

from engine.export.clipping import absorb_clips, clip_limits
from engine.export.integer_graph import DEQUANTIZE, QUANTIZE, insert_pair

_ATEN = torch.ops.aten


def graph_of(target, arguments, settings):
    """Return a module that clips, puts the result on a grid and takes it off."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    clipped = graph.call_function(target, (x, *arguments))
    output = graph.output(clipped)
    insert_pair(graph, clipped, settings, [output])
    return fx.GraphModule(nn.Module(), graph)


@given(
    low=st.floats(-3, 1),
    width=st.floats(0, 8),
    scale=st.floats(0.01, 0.9),
    zero_point=st.integers(0, 200),
    levels=st.integers(1, 255),
)
def test_a_quantize_clips_as_the_activation_before_it_did(low, width, scale, zero_point, levels):
    zero_point = min(zero_point, levels)
    module = graph_of(
        _ATEN.clamp.default, (low, low + width), (scale, zero_point, 0, levels, torch.uint8)
    )
    x = torch.linspace(-9, 9, 501)
    expected = module(x)
    absorb_clips(module.graph)
    module.recompile()
    # At a limit that lies half-way between two integers the order of operations may decide.
    apart = (module(x) - expected).abs()
    halves = ((torch.tensor([low, low + width]) / scale) % 1 - 0.5).abs().min()
    assert apart.max() <= (0 if halves > 1e-4 else 1.001 * scale)
    assert not any(node.target is _ATEN.clamp.default for node in module.graph.nodes)


@pytest.mark.parametrize(
    ("target", "arguments", "limits"),
    [
        (_ATEN.relu.default, (), (0, torch.inf)),
        (_ATEN.relu6.default, (), (0, 6)),
        (_ATEN.hardtanh.default, (), (-1, 1)),
        (_ATEN.hardtanh.default, (0.0, 6.0), (0, 6)),
        (_ATEN.clamp.default, (None, 2), (-torch.inf, 2)),
        (_ATEN.clamp.default, (-1,), (-1, torch.inf)),
        (_ATEN.gelu.default, (), None),
    ],
)
def test_limits_are_those_of_the_operator(target, arguments, limits):
    module = graph_of(target, arguments, (0.1, 0, 0, 255, torch.uint8))
    (node,) = (node for node in module.graph.nodes if node.target is target)
    assert clip_limits(node) == limits
    if limits is not None:
        x = torch.linspace(-20, 20, 81)
        assert torch.equal(target(x, *arguments), x.clamp(*limits))


def test_an_activation_that_is_also_read_in_float_stays():
    module = graph_of(_ATEN.relu.default, (), (0.1, 128, 0, 255, torch.uint8))
    (relu,) = (node for node in module.graph.nodes if node.target is _ATEN.relu.default)
    (output,) = (node for node in module.graph.nodes if node.op == "output")
    output.args = ((output.args[0], relu),)
    absorb_clips(module.graph)
    assert relu in module.graph.nodes
    targets = [node.target for node in module.graph.nodes]
    assert targets.count(QUANTIZE) == targets.count(DEQUANTIZE) == 1


@pytest.mark.parametrize(
    ("bits", "activation"), [(8, "per_tensor_symmetric"), (3, "per_tensor_affine")]
)
def test_relu6_is_part_of_an_integer_convolution(bits, activation, tmp_path):
    # With fewer than 256 integers ONNX Runtime kept the clip, and with it a float convolution.
    pytest.importorskip("onnxruntime")
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU6(), nn.Conv2d(4, 2, 1))
    x = 6 * torch.randn(8, 2, 5, 5)
    scheme = {"weight": "per_channel_symmetric", "input": activation}
    quantizer = quantized(model, x, "ptq", bits=bits, quant_scheme=scheme)
    inside, placements = program_of(quantizer, x)
    assert placements[0].integer
    path = tmp_path / "n.onnx"
    quantizer.export_model(tmp_path / "n.pth", onnx_path=path, input_shape=[1, 2, 5, 5])
    output, operators = run_file(path, x)
    assert (operators["QLinearConv"], operators["FusedConv"]) == (1, 0)
    torch.testing.assert_close(output, inside, rtol=1e-5, atol=1e-5)
    # A bias of integers moves a hidden value by a thousandth of its step: few lie that near a tie.
    assert torch.isclose(output, model(x), rtol=1e-3, atol=1e-4).float().mean() > 0.9
