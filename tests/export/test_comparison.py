"""Every ONNX file is compared with the model: broken ones are refused, right ones never are."""

import warnings

import onnx
import pytest
import torch
import torch.nn.functional as F
from integers import entry, quantized, run_file
from torch import nn

from engine import ExportError
from engine.algorithms import L1FilterPruner, PTQQuantizer
from engine.export import comparison, integer_bias, onnx_file
from engine.export.comparison import compare_file, sample_of


class Block(nn.Module):
    """Of a mobile network: wide, depthwise, narrow, and a sum."""

    def __init__(self, channels):
        super().__init__()
        wide = 2 * channels
        self.a = nn.Conv2d(channels, wide, 1, bias=False)
        self.b = nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False)
        self.c = nn.Conv2d(wide, channels, 1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(n) for n in (wide, wide, channels)])

    def forward(self, x):
        y = F.relu6(self.norms[0](self.a(x)))
        y = F.relu6(self.norms[1](self.b(y)))
        return x + self.norms[2](self.c(y))


class Deep(nn.Module):
    """So many blocks of random weights that each step of rounding grows on the way."""

    def __init__(self, blocks=8):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.blocks = nn.Sequential(*[Block(8) for _ in range(blocks)])
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.blocks(F.relu(self.stem(x))).mean((2, 3)))


def pictures(count=4):
    return torch.randn(count, 3, 12, 12, generator=torch.Generator().manual_seed(7))


def deep(bits=8, **more):
    torch.manual_seed(8)
    model, x = Deep(), pictures(16)
    model(x)
    return quantized(model.eval(), x, "ptq", bits=bits, **more)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("batches", [None, [pictures()]])
def test_deep_networks_of_random_weights_are_no_false_errors(bits, batches, tmp_path):
    quantizer = deep(bits)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quantizer.export_model(
            tmp_path / "m.pth", None, tmp_path / "m.onnx", [1, 3, 12, 12], batches=batches
        )


def broken(monkeypatch, what):
    """Let the export write biases, or scales of channels, that are not the model's."""
    fitted, attribute = integer_bias.fitted, integer_bias.attribute

    def wrong_scale(*arguments):
        found = fitted(*arguments)
        return found._replace(scale=found.scale * 1.5, changed=True)

    def wrong_bias(module, node):
        value = attribute(module, node)
        return value.round() if str(node.target).endswith("bias") else value

    if what == "scale":
        monkeypatch.setattr(integer_bias, "fitted", wrong_scale)
    else:
        monkeypatch.setattr(integer_bias, "attribute", wrong_bias)


def perceptron(bits=8):
    torch.manual_seed(9)
    model = nn.Sequential(nn.Conv1d(2, 6, 3), nn.ReLU(), nn.Conv1d(6, 4, 3))
    with torch.no_grad():
        model[0].bias.copy_(torch.tensor([2.4, -1, 1.5, 3.4, 0.4, 1.4]))
    return quantized(model, torch.randn(8, 2, 12), "ptq", bits=bits, op_types=["Conv1d"])


@pytest.mark.parametrize("what", ["bias", pytest.param("scale", marks=pytest.mark.slow)])
def test_a_broken_file_is_not_written(what, monkeypatch, tmp_path):
    quantizer = perceptron()
    broken(monkeypatch, what)
    arguments = tmp_path / "m.pth", tmp_path / "m.json", tmp_path / "m.onnx", [1, 2, 12]
    with pytest.raises(ExportError, match="something else than the model: output 0 "):
        quantizer.export_model(*arguments)
    assert not list(tmp_path.iterdir())
    with pytest.warns(UserWarning, match="of its largest value"):
        quantizer.export_model(*arguments, compare="warn")
    assert len(list(tmp_path.iterdir())) == 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quantizer.export_model(*arguments, compare="no")


def test_an_older_file_stays_when_the_new_one_is_broken(monkeypatch, tmp_path):
    quantizer = perceptron()
    arguments = tmp_path / "m.pth", None, tmp_path / "m.onnx", [1, 2, 12]
    quantizer.export_model(*arguments)
    before = (tmp_path / "m.onnx").read_bytes()
    broken(monkeypatch, "bias")
    with pytest.raises(ExportError):
        quantizer.export_model(*arguments)
    assert (tmp_path / "m.onnx").read_bytes() == before


def test_one_changed_number_of_a_float_file_is_seen(tmp_path):
    torch.manual_seed(10)
    model, x = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).eval(), torch.randn(3, 4)
    pruner = L1FilterPruner(model, [{"op_names": ["0"], "sparsity": 0.3}])
    pruner.compress()
    pruner.export_model(tmp_path / "m.pth", None, tmp_path / "m.onnx", [1, 4])
    held = onnx.load(tmp_path / "m.onnx")
    bias = next(each for each in held.graph.initializer if list(each.dims) == [2])
    numbers = onnx.numpy_helper.to_array(bias).copy()
    numbers[1] += 0.02
    bias.CopyFrom(onnx.numpy_helper.from_array(numbers, bias.name))
    onnx.save(held, tmp_path / "changed.onnx")
    sample = sample_of(model, (x,), {})
    compare_file(tmp_path / "m.onnx", [sample], 1, "error")
    with pytest.raises(ExportError, match="output 0 is off by"):
        compare_file(tmp_path / "changed.onnx", [sample], 1, "error")


def test_without_onnxruntime_onnxs_own_evaluator_compares(monkeypatch, tmp_path):
    import importlib.util

    find = importlib.util.find_spec
    hidden = lambda name: None if name == "onnxruntime" else find(name)  # noqa: E731
    quantizer = perceptron()
    monkeypatch.setattr(importlib.util, "find_spec", hidden)
    quantizer.export_model(tmp_path / "m.pth", None, tmp_path / "m.onnx", [1, 2, 12])
    broken(monkeypatch, "scale")
    with pytest.raises(ExportError, match="computes something else"):
        quantizer.export_model(tmp_path / "m.pth", None, tmp_path / "m.onnx", [1, 2, 12])


@pytest.mark.parametrize("compare", ["error", "warn", "no"])
def test_a_large_model_that_nothing_can_run_is_said_not_to_be_compared(
    monkeypatch, tmp_path, compare
):
    import importlib.util

    find = importlib.util.find_spec
    hidden = lambda name: None if name == "onnxruntime" else find(name)  # noqa: E731
    quantizer = perceptron()
    monkeypatch.setattr(importlib.util, "find_spec", hidden)
    monkeypatch.setattr(comparison, "_SMALL", 10)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        quantizer.export_model(
            tmp_path / "m.pth", None, tmp_path / "m.onnx", [1, 2, 12], compare=compare
        )
    said = [str(each.message) for each in caught if "not compared" in str(each.message)]
    assert len(said) == (compare != "no")
    assert all("pip install onnxruntime" in text for text in said)
    assert (tmp_path / "m.onnx").exists()


def test_compare_has_three_choices(tmp_path):
    with pytest.raises(ExportError, match="compare is 'maybe'"):
        perceptron().export_model(
            tmp_path / "m.pth", None, tmp_path / "m.onnx", [1, 2, 12], compare="maybe"
        )


def table():
    torch.manual_seed(11)
    model = nn.Sequential(nn.Embedding(300, 16), nn.Linear(16, 3)).eval()
    x = torch.arange(6)[None]
    quantizer = PTQQuantizer(model, [entry(op_types=["Linear"])], dummy_input=x)
    quantizer.compress()
    quantizer.calibrate([x])
    return quantizer, x


def test_large_models_are_a_pair_of_files_and_replaced_together(monkeypatch, tmp_path):
    quantizer, x = table()
    monkeypatch.setattr(onnx_file, "LARGEST_FILE", 1000)
    for _ in range(2):
        quantizer.export_model(tmp_path / "m.pth", None, tmp_path / "net.onnx")
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["m.pth", "net.onnx", "net.onnx.data"]
    found, _ = run_file(tmp_path / "net.onnx", x)
    torch.testing.assert_close(found, quantizer.bound_model(x).detach(), atol=1e-4, rtol=1e-4)
    (tmp_path / "net.onnx.optimized").unlink()
    monkeypatch.setattr(onnx_file, "LARGEST_FILE", 10**9)
    quantizer.export_model(tmp_path / "m.pth", None, tmp_path / "net.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.pth", "net.onnx"]


def test_a_large_model_that_fails_leaves_what_was_there(monkeypatch, tmp_path):
    quantizer, _ = table()
    monkeypatch.setattr(onnx_file, "LARGEST_FILE", 1000)
    quantizer.export_model(tmp_path / "m.pth", None, tmp_path / "net.onnx")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def refuse(*arguments):
        raise ExportError("no")

    monkeypatch.setattr(onnx_file, "compare_file", refuse)
    with pytest.raises(ExportError, match="no"):
        quantizer.export_model(tmp_path / "m.pth", None, tmp_path / "net.onnx")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


class Counted(nn.Module):
    """Its code holds the number of pictures: no other batch goes through the file."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv1d(2, 3, 1)

    def forward(self, x):
        return self.layer(x).reshape(10, 12).relu()


def test_batches_of_one_size_only_are_compared_whole(tmp_path):
    torch.manual_seed(12)
    x = torch.randn(10, 2, 4)
    quantizer = quantized(Counted(), x, "ptq", op_types=["Conv1d"])
    quantizer.export_model(
        tmp_path / "m.pth", None, tmp_path / "m.onnx", [10, 2, 4], batches=[x, x + 1]
    )
    assert (tmp_path / "m.onnx").exists()
