"""What is said about grids in a graph is exact, and kernels are found by it."""

import pytest
import torch
from integers import Residual, program_of, quantized, run_file, step_of_input
from models import mlp
from torch import nn

from engine import ExportError
from engine.algorithms import QAT_Quantizer
from engine.export.integer_program import integer_program
from engine.export.onnx_file import write_program


def reasons(placements):
    return [(p.layer, p.operator, p.reason) for p in placements]


def net(*between):
    return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), *between, nn.Conv2d(6, 4, 3))


def pictures(count=16):
    return torch.randn(count, 3, 6, 6, generator=torch.Generator().manual_seed(2))


BETWEEN = {
    "relu in place": lambda: (nn.ReLU(inplace=True),),
    "norm and relu": lambda: (nn.BatchNorm2d(6), nn.ReLU()),
    "pooled": lambda: (nn.ReLU(), nn.MaxPool2d(2)),
    "dropout": lambda: (nn.Dropout(),),
}


@pytest.mark.parametrize("between", BETWEEN)
@pytest.mark.parametrize("kinds", [("weight", "input"), ("weight", "input", "output")])
@pytest.mark.parametrize("activation", ["per_tensor_affine", "per_tensor_symmetric"])
def test_a_convolution_before_a_quantized_one_writes_integers(between, kinds, activation):
    model, x = net(*BETWEEN[between]()), pictures()
    scheme = dict.fromkeys(kinds, activation) | {"weight": "per_channel_symmetric"}
    quantizer = quantized(model, x, kinds=kinds, quant_scheme=scheme, fold_batch_norm="fused")
    output, placements = program_of(quantizer, x)
    assert placements[0].integer
    assert placements[1].integer == ("output" in kinds)
    expected = model(x).detach()
    # Steps of the last input through the largest weight; and one of the output.
    step = float(quantizer.wrappers[-1].input_scale) * model[-1].weight.abs().max()
    own = getattr(quantizer.wrappers[-1], "output_scale", torch.tensor(0.0))
    assert (output - expected).abs().max() <= 3 * step + float(own)
    assert torch.isclose(output, expected, atol=1e-5).float().mean() > 0.9


def test_pooling_between_convolutions_is_an_integer_kernel(tmp_path):
    pytest.importorskip("onnxruntime")
    model, x = net(*BETWEEN["pooled"]()), pictures()
    quantizer = quantized(model, x)
    quantizer.export_model(
        tmp_path / "n.pth", onnx_path=tmp_path / "n.onnx", input_shape=[1, 3, 6, 6], batches=[x]
    )
    _, operators = run_file(tmp_path / "n.onnx", x)
    assert operators["QLinearConv"] == 2
    assert operators["NhwcMaxPool"] + operators["MaxPool"] == 1
    assert operators["DequantizeLinear"] == 1  # of the output


def test_activations_of_few_bits_are_clipped(tmp_path):
    pytest.importorskip("onnxruntime")
    model = mlp(8, 16, 4)
    x = torch.randn(64, 8)
    quantizer = quantized(model, x, bits=3)
    path = tmp_path / "net.onnx"
    quantizer.export_model(tmp_path / "net.pth", onnx_path=path, input_shape=[1, 8])
    far = 5 * x  # beyond the ranges
    output, operators = run_file(path, far)
    assert torch.isclose(output, model(far), atol=1e-4).float().mean() > 0.9
    assert (output - model(far)).abs().max() <= 3 * step_of_input(quantizer, "2")
    assert operators["Clip"] >= 1


def test_without_batches_sums_stay_float_and_the_report_says_so():
    x = torch.randn(6, 3, 6, 6)
    quantizer = quantized(Residual(), x)
    _, placements = program_of(quantizer, x)
    assert reasons(placements) == [
        ("first", "convolution", "the output is also read in float"),
        ("second", "convolution", "the output is not quantized"),
        ("", "add", "an input is not quantized"),
        ("fc", "linear", ""),
    ]


def test_with_batches_every_operator_is_an_integer_kernel(tmp_path):
    pytest.importorskip("onnxruntime")
    model, x = Residual(), torch.randn(32, 3, 6, 6)
    exported = integer_program(quantized(model, x), x, [x])
    assert all(placement.integer for placement in exported.placements)
    write_program(exported.program, tmp_path / "net.onnx")
    output, operators = run_file(tmp_path / "net.onnx", x)
    torch.testing.assert_close(output, exported.program.module()(x), rtol=1e-5, atol=1e-5)
    assert (operators["QLinearConv"], operators["QLinearAdd"], operators["QGemm"]) == (2, 1, 1)
    assert not {"Conv", "FusedConv", "Gemm", "MatMul"} & set(operators)
    # Three roundings more than the fake-quantized model has, each of half a step of 8 bits.
    expected = model(x).detach()
    step = (expected.max() - expected.min()) / 255
    assert (output - expected).abs().max() <= 3 * step
    assert (output - expected).abs().mean() <= step


class Add(nn.Module):
    def forward(self, a, b):
        return a + b


class Modular(nn.Module):
    """A residual block of modules only: a quantizer reaches all of its tensors."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.add = Add()
        self.relu = nn.ReLU()
        self.fc = nn.Linear(8 * 36, 4)

    def forward(self, x):
        x = self.first(x)
        return self.fc(self.relu(self.add(x, self.second(x))).flatten(1))


def test_where_the_quantizer_covers_sums_no_batches_are_needed(tmp_path):
    pytest.importorskip("onnxruntime")
    model, x = Modular(), pictures(64)
    everything = {"quant_types": ["weight", "input", "output"], "quant_bits": 8}
    everything["quant_scheme"] = {"weight": "per_channel_symmetric"}
    config = [
        {**everything, "op_types": ["Conv2d", "Linear"]},
        {"quant_types": ["output"], "quant_bits": 8, "op_types": ["ReLU"]},
    ]
    quantizer = QAT_Quantizer(model, config)
    quantizer.compress()(x)
    model.eval()
    placements = quantizer.export_model(
        tmp_path / "n.pth", onnx_path=tmp_path / "n.onnx", input_shape=[1, 3, 6, 6]
    )
    assert [p.operator for p in placements if p.integer] == [p.operator for p in placements]
    output, operators = run_file(tmp_path / "n.onnx", x)
    assert (operators["QLinearConv"], operators["QLinearAdd"], operators["QGemm"]) == (2, 1, 1)
    step = float(quantizer.wrappers[-1].output_scale)
    assert (output - model(x)).abs().max() <= 1.001 * step


def test_equal_grids_of_one_tensor_are_one():
    class Fork(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.a, self.b = (nn.Linear(8, 8) for _ in range(3))

        def forward(self, x):
            x = self.stem(x).relu()
            return self.a(x) * self.b(x)

    x = torch.randn(16, 8)
    exported = integer_program(quantized(Fork(), x), x)
    quantizes = [n for n in exported.program.graph.nodes if "quantize_per_tensor" in str(n.target)]
    assert len(quantizes) == 2 * 2  # the input and the stem's output, each with its counterpart
    assert all(placement.integer for placement in exported.placements)


def test_a_bias_too_large_for_the_weights_of_its_channel_fits():
    model, x = net(nn.BatchNorm2d(6), nn.ReLU()), pictures()
    with torch.no_grad():
        model[1].weight[2] = 1e-13  # as good as removed
        model[1].bias[2] = 0.75
    quantizer = quantized(model, x, fold_batch_norm="fused")
    output, placements = program_of(quantizer, x)
    assert placements[0].integer
    step = float(quantizer.wrappers[-1].input_scale) * model[-1].weight.abs().max()
    assert (output - model(x)).abs().max() <= 3 * step


def test_transposed_convolutions_and_groups_are_said_to_be_float():
    x = torch.randn(4, 3, 8)
    model = nn.Sequential(nn.ConvTranspose1d(3, 4, 3), nn.ReLU(), nn.Conv1d(4, 2, 3))
    quantizer = quantized(
        model, x, op_types=["ConvTranspose1d", "Conv1d"], weights="per_group_symmetric"
    )
    output, placements = program_of(quantizer, x)
    assert [p.reason for p in placements] == [
        "transposed convolutions have no integer kernel",
        "scales of groups have no kernel",
    ]
    torch.testing.assert_close(output, model(x), rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "the export got no batches"),
        ([torch.randn(2, 5)], r"a batch \(\[2, 5\]\) does not go through the exported model"),
        ([torch.full((2, 3, 6, 6), torch.nan)], "a batch holds NaN or infinity"),
        (["text"], r"a batch \(str\) does not go through"),
        (3, "the export got int in place of batches"),
    ],
)
def test_batches_that_are_of_no_use_are_refused(batches, message):
    x = torch.randn(4, 3, 6, 6)
    quantizer = quantized(Residual(), x)
    with pytest.raises(ExportError, match=message):
        integer_program(quantizer, x, batches)
