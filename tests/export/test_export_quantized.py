"""What ``export_model`` of a quantizer writes, and that it loads into a plain model."""

import json
import os

import numpy as np
import pytest
import torch
from models import ConvNet, TiedLanguageModel, images, mlp, train_step
from safetensors import safe_open
from torch import nn

from engine import CheckpointError, ExportError, Quantizer, layer_table, load_quantized
from engine.algorithms import (
    BNNQuantizer,
    DoReFaQuantizer,
    LevelPruner,
    NaiveQuantizer,
    QAT_Quantizer,
)

ALGORITHMS = [
    *[(NaiveQuantizer, bits) for bits in (2, 3, 8, 16)],
    *[(QAT_Quantizer, bits) for bits in (2, 4, 5, 8, 16)],
    *[(DoReFaQuantizer, bits) for bits in (1, 2, 4, 7, 8)],
    (BNNQuantizer, 1),
]
each_algorithm = pytest.mark.parametrize(
    ("cls", "bits"), ALGORITHMS, ids=[f"{cls.__name__}-{bits}" for cls, bits in ALGORITHMS]
)


def attach(cls, model, bits, *kinds, op_types=None):
    if op_types is None:
        present = {type(layer).__name__ for layer in model.modules()}
        op_types = sorted(present & {"Conv2d", "Linear"})
    entry = {"quant_types": list(kinds or ["weight"]), "quant_bits": bits, "op_types": op_types}
    quantizer = cls(model, [entry])
    quantizer.compress()
    return quantizer


@each_algorithm
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.9])
def test_a_fresh_model_loads_exactly_what_the_quantized_one_computes(cls, bits, sparsity, tmp_path):
    model = mlp(8, 16, 4)
    quantizer = attach(cls, model, bits)
    if sparsity:
        LevelPruner(model, [{"sparsity": sparsity, "op_types": ["Linear"]}]).compress()
    quantizer.export_model(tmp_path / "model.pth")
    fresh = load_quantized(mlp(8, 16, 4), tmp_path / "model.pth")
    model.eval()
    fresh.eval()
    batch = torch.randn(5, 8)
    assert torch.equal(fresh[0].weight, model[0].weight)
    assert torch.equal(fresh(batch), model(batch))


def test_norms_and_biases_are_exported_as_they_are(tmp_path):
    model = ConvNet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    quantizer = attach(QAT_Quantizer, model, 8)
    train_step(model, optimizer, images())
    quantizer.export_model(tmp_path / "model.pth")
    fresh = load_quantized(ConvNet(), tmp_path / "model.pth")
    model.eval()
    fresh.eval()
    assert torch.equal(fresh(images(seed=3)), model(images(seed=3)))
    assert torch.equal(fresh.bn1.running_mean, model.bn1.running_mean)


def test_the_root_module_and_tied_weights_have_their_keys(tmp_path):
    layer = nn.Linear(4, 3)
    attach(QAT_Quantizer, layer, 4).export_model(tmp_path / "layer.pth")
    assert torch.equal(load_quantized(nn.Linear(4, 3), tmp_path / "layer.pth").weight, layer.weight)

    model = TiedLanguageModel()
    quantizer = attach(QAT_Quantizer, model, 4, op_types=["Embedding", "Linear"])
    quantizer.export_model(tmp_path / "tied.pth")
    fresh = load_quantized(TiedLanguageModel(), tmp_path / "tied.pth")
    assert fresh.decoder.weight is fresh.embedding.weight
    assert torch.equal(fresh.decoder.weight, model.decoder.weight)


@pytest.mark.parametrize("name", ["tied.pth", "tied.safetensors"])
def test_a_weight_that_two_layers_share_is_packed_once(name, tmp_path):
    model = TiedLanguageModel()
    size = model.decoder.weight.numel()
    quantizer = attach(QAT_Quantizer, model, 8, op_types=["Embedding", "Linear"])
    quantizer.export_model(tmp_path / name)
    table = layer_table(model, quantizer)
    by_name = {row.name: row for row in table.rows}
    assert size <= by_name["embedding"].bytes_after < 2 * size
    assert table.bytes_before == sum(p.nbytes for p in model.parameters()) + sum(
        b.nbytes for b in model.buffers()
    )
    fresh = load_quantized(TiedLanguageModel(), tmp_path / name)
    assert fresh.decoder.weight is fresh.embedding.weight
    assert torch.equal(fresh.decoder.weight, model.decoder.weight)
    if name.endswith(".safetensors"):
        with safe_open(str(tmp_path / name), "pt") as stream:
            assert "decoder.weight:codes" not in stream.keys()  # noqa: SIM118


def test_half_precision_comes_back_in_half_precision(tmp_path):
    model = mlp().bfloat16()
    attach(QAT_Quantizer, model, 8).export_model(tmp_path / "model.pth")
    fresh = load_quantized(mlp().bfloat16(), tmp_path / "model.pth")
    assert fresh[0].weight.dtype == torch.bfloat16
    assert torch.equal(fresh[0].weight, model[0].weight)


@pytest.mark.parametrize(("bits", "most"), [(8, 0.27), (4, 0.14), (2, 0.08), (1, 0.05)])
def test_the_file_is_as_small_as_its_bits(bits, most, tmp_path):
    model = nn.Linear(256, 512, bias=False)
    cls = DoReFaQuantizer if bits < 4 else QAT_Quantizer
    torch.save(model.state_dict(), tmp_path / "float.pth")
    attach(cls, model, bits).export_model(tmp_path / "packed.pth")
    sizes = [os.path.getsize(tmp_path / name) for name in ("packed.pth", "float.pth")]
    assert sizes[0] / sizes[1] < most


def test_the_calibration_has_each_layers_grids_as_they_are_now(tmp_path):
    model = mlp(2, 1)
    quantizer = attach(QAT_Quantizer, model, 4, "weight", "input", "output")
    model(torch.tensor([[0.0, 3.0]]))
    with torch.no_grad():
        model[0]._parameters["weight"].copy_(torch.tensor([[-1.0, 0.5]]))
    quantizer.export_model(tmp_path / "model.pth", tmp_path / "calibration.json")
    layer = json.loads((tmp_path / "calibration.json").read_text())["0"]
    assert layer["weight"] == {
        "bits": 4,
        "scheme": "per_tensor_affine",
        "scale": pytest.approx(0.1),
        "zero_point": 10,
        "qmin": 0,
        "qmax": 15,
    }
    assert layer["input"] == {
        "bits": 4,
        "scheme": "per_tensor_affine",
        "scale": pytest.approx(0.2),
        "zero_point": 0,
        "qmin": 0,
        "qmax": 15,
        "range": [0, 3],
    }
    assert layer["output"].keys() == layer["input"].keys()


def test_a_range_that_was_never_seen_is_null(tmp_path):
    model = nn.Sequential(mlp(2, 1), nn.Linear(2, 1))
    quantizer = attach(QAT_Quantizer, model, 4, "weight", "input")
    model[1](torch.ones(3, 2))
    with pytest.warns(UserWarning, match='no range yet of the input of "0.0": null in the file'):
        quantizer.export_model(tmp_path / "model.pth", tmp_path / "calibration.json")
    text = (tmp_path / "calibration.json").read_text()
    assert "NaN" not in text
    assert json.loads(text)["0.0"]["input"]["range"] is None


# -- what cannot be exported ---------------------------------------------------------------------


class Scaling(Quantizer):
    def quantize_weight(self, weight, wrapper):
        return weight * 0.999


def test_a_weight_that_is_not_quantized_is_refused_by_name_and_nothing_is_written(tmp_path):
    quantizer = attach(Scaling, mlp(8, 10), 4)
    with pytest.raises(ExportError) as caught:
        quantizer.export_model(tmp_path / "model.pth", tmp_path / "calibration.json")
    assert str(caught.value) == (
        'layer "0": the weight has 80 different values beside zero, 4 bits hold 16: it is not '
        "quantized to 4 bits"
    )
    assert not list(tmp_path.iterdir())


def test_export_before_compress_and_without_a_path_are_refused(tmp_path):
    quantizer = QAT_Quantizer(
        mlp(), [{"quant_types": ["weight"], "quant_bits": 8, "op_types": ["Linear"]}]
    )
    with pytest.raises(ExportError, match=r"call compress\(\) before"):
        quantizer.export_model(tmp_path / "model.pth")
    quantizer.compress()
    with pytest.raises(ExportError, match="export_model needs model_path"):
        quantizer.export_model(None)


def test_a_folder_that_is_not_there_is_an_export_error(tmp_path):
    quantizer = attach(QAT_Quantizer, mlp(), 8)
    with pytest.raises(ExportError, match="cannot write"):
        quantizer.export_model(tmp_path / "nowhere" / "model.pth")


def test_a_write_that_fails_leaves_the_file_that_was_there(tmp_path, monkeypatch):
    quantizer = attach(QAT_Quantizer, mlp(), 8)
    path = tmp_path / "model.pth"
    quantizer.export_model(path)
    before = path.read_bytes()

    def full(value, file):
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(ExportError, match="No space left"):
        quantizer.export_model(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["model.pth"]


# -- files that cannot be loaded -----------------------------------------------------------------


@pytest.fixture
def exported(tmp_path):
    attach(QAT_Quantizer, mlp(), 4).export_model(tmp_path / "model.pth")
    return tmp_path / "model.pth"


def refuses(path, model=None) -> str:
    """Load into a model; return the message once it is known that the model is as before."""
    model = mlp() if model is None else model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_quantized(model, path)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    return str(caught.value)


@pytest.mark.parametrize("part", [0, 10, 500, -1])
def test_a_file_cut_off_is_refused(exported, part):
    exported.write_bytes(exported.read_bytes()[:part])
    assert str(exported) in refuses(exported)


def test_a_file_of_another_kind_is_refused(tmp_path):
    for value in ({"format": "other"}, mlp().state_dict(), [1, 2], torch.zeros(3)):
        torch.save(value, tmp_path / "other.pth")
        assert "is not a quantized model written by export_model" in refuses(tmp_path / "other.pth")
    assert "there is no file" in refuses(tmp_path / "nothing.pth")


def test_a_file_that_holds_code_is_refused(tmp_path):
    torch.save(mlp(), tmp_path / "code.pth")
    assert "cannot be loaded" in refuses(tmp_path / "code.pth")


def test_a_newer_version_is_refused(exported):
    saved = torch.load(exported, weights_only=True)
    torch.save({**saved, "version": 99}, exported)
    assert "has version 99, this engine reads version 1" in refuses(exported)


@pytest.mark.parametrize(
    "damage",
    [
        lambda saved: saved.pop("rest"),
        lambda saved: saved.pop("quantized"),
        lambda saved: saved.update(quantized=[1]),
        lambda saved: saved.update(rest=3),
        lambda saved: saved["quantized"]["0.weight"].pop("codes"),
        lambda saved: saved["quantized"]["0.weight"].update(surplus=1),
        lambda saved: saved["quantized"]["0.weight"].update(codes=torch.zeros(2)),
        lambda saved: saved["quantized"]["0.weight"].update(codes="text"),
        lambda saved: saved["quantized"]["0.weight"].update(shape=(-1,)),
        lambda saved: saved["quantized"]["0.weight"].update(shape="text"),
        lambda saved: saved["quantized"]["0.weight"].update(table=torch.zeros(1), scale=None),
        lambda saved: saved["quantized"]["0.weight"].update(scale=torch.zeros(2, 2, 2, 2)),
        lambda saved: saved["quantized"].update({"0.weight": 7}),
    ],
)
def test_a_file_with_wrong_parts_is_refused(exported, damage):
    saved = torch.load(exported, weights_only=True)
    damage(saved)
    torch.save(saved, exported)
    assert refuses(exported)


def test_a_model_of_another_shape_is_refused_with_the_keys(exported):
    message = refuses(exported, mlp(8, 11, 4))
    assert '"0.weight": (10, 8), the model has (11, 8)' in message
    assert "nothing was changed" in message


# -- ONNX ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "bits", "kinds"),
    [
        (QAT_Quantizer, 8, ["weight", "input", "output"]),
        (DoReFaQuantizer, 2, ["weight", "input"]),
    ],
)
def test_onnx_runtime_computes_what_the_quantized_model_does(cls, bits, kinds, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 3))
    quantizer = attach(cls, model, bits, *kinds)
    batch = torch.rand(3, 1, 8, 8)
    model(batch)
    path = tmp_path / "model.onnx"
    quantizer.export_model(tmp_path / "model.pth", onnx_path=path, input_shape=[1, 1, 8, 8])
    assert model.training
    assert model[0]._parameters["weight"].requires_grad
    model.eval()
    session = onnxruntime.InferenceSession(str(path))
    (entry,) = session.get_inputs()
    (result,) = session.run(None, {entry.name: batch.numpy()})
    np.testing.assert_allclose(result, model(batch).detach(), rtol=1e-4, atol=1e-5)
    # The file holds the integers themselves, not the way to compute them.
    stored = {i.name: onnx.numpy_helper.to_array(i) for i in onnx.load(path).graph.initializer}
    assert stored["0.weight"].dtype == np.int8
    assert stored["3.weight"].shape == (3, 72)


def test_a_shape_that_does_not_fit_the_model_is_an_export_error(tmp_path):
    quantizer = attach(QAT_Quantizer, mlp(), 8)
    with pytest.raises(ExportError) as caught:
        quantizer.export_model(
            tmp_path / "model.pth", onnx_path=tmp_path / "model.onnx", input_shape=[1, 99]
        )
    assert str(caught.value).startswith(
        "the model cannot be exported for an input of shape [1, 99]: "
    )
    assert "\n" not in str(caught.value)
    assert isinstance(quantizer.bound_model[0], nn.Linear)
    assert len(quantizer.bound_model[0].weight.unique()) > 1
    assert quantizer.bound_model[0]._parameters["weight"].requires_grad
    with pytest.raises(ExportError, match="ONNX export needs input_shape"):
        quantizer.export_model(tmp_path / "model.pth", onnx_path=tmp_path / "model.onnx")


@pytest.mark.parametrize("shape", ["1,6", [1, -6], [0, 6], [1, 6.0], [True, 6]])
def test_an_input_shape_that_is_no_list_of_sizes_is_refused(shape, tmp_path):
    quantizer = attach(QAT_Quantizer, mlp(), 8)
    with pytest.raises(ExportError, match=r"input_shape is .*\n  it needs whole numbers from 1 on"):
        quantizer.export_model(tmp_path / "m.pth", onnx_path=tmp_path / "m.onnx", input_shape=shape)
    assert not list(tmp_path.iterdir())


def test_a_device_that_is_not_there_is_an_export_error(tmp_path):
    quantizer = attach(QAT_Quantizer, mlp(), 8)
    with pytest.raises(ExportError, match='an input cannot be made on the device "gpu": Expected'):
        quantizer.export_model(
            tmp_path / "m.pth", onnx_path=tmp_path / "m.onnx", input_shape=[1, 6], device="gpu"
        )


def test_what_does_not_fit_is_said_once_and_no_log_beside_it(tmp_path, caplog):
    # torch.export logs a traceback of its own when it meets what the model cannot compute.
    quantizer = attach(QAT_Quantizer, mlp(), 8)
    with caplog.at_level("WARNING", "torch"), pytest.raises(ExportError):
        quantizer.export_model(
            tmp_path / "m.pth", onnx_path=tmp_path / "m.onnx", input_shape=[1, 99]
        )
    assert not caplog.records


def test_a_weight_that_is_not_finite_is_refused_by_name(tmp_path):
    for bad in (float("inf"), float("nan")):
        quantizer = attach(QAT_Quantizer, mlp(), 8)
        with torch.no_grad():
            quantizer.wrappers[0].weight[0, 0] = bad
        with pytest.raises(ExportError, match='layer "0": the weight holds NaN or infinity'):
            quantizer.export_model(tmp_path / "m.pth")
        assert not list(tmp_path.iterdir())


def test_what_the_exporter_refuses_is_said_in_one_line(tmp_path):
    class Odd(nn.Module):
        def forward(self, x):
            return torch.linalg.eigvals(x).real if x.sum() > 0 else x

    model = nn.Sequential(nn.Linear(4, 4), Odd())
    quantizer = attach(QAT_Quantizer, model, 8)
    with pytest.raises(ExportError) as caught:
        quantizer.export_model(
            tmp_path / "model.pth", onnx_path=tmp_path / "model.onnx", input_shape=[2, 4]
        )
    assert str(caught.value).startswith("the model cannot be exported for an input of")
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert not list(tmp_path.iterdir())
