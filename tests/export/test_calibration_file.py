"""Ranges that were written are those that are loaded, or nothing is."""

import json
import math

import pytest
import torch
from integers import entry, quantized
from models import mlp

import engine
from engine import CheckpointError

NAMES = ["qat", "ptq", "lsq", "lsq_plus"]


def inputs():
    return torch.randn(32, 8, generator=torch.Generator().manual_seed(3))


def written(name, path, **settings):
    quantizer = quantized(mlp(), inputs(), name, kinds=("weight", "input", "output"), **settings)
    quantizer.export_model(path / "m.pth", path / "c.json")
    return quantizer


def fresh(name, model, **settings):
    settings.setdefault("kinds", ("weight", "input", "output"))
    own = entry(op_types=["Linear"], **settings)
    if name.startswith("lsq"):
        own["quant_scheme"] = "per_channel_symmetric"
    quantizer = engine.create_compressor(model, {"compressor": name, "config_list": [own]})
    quantizer.compress()
    return quantizer


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bits", [8, 3])
def test_a_model_elsewhere_rounds_the_same_after_loading(name, bits, tmp_path):
    quantizer = written(name, tmp_path, bits=bits)
    model = mlp()
    model.load_state_dict(quantizer.bound_model.state_dict())
    other = fresh(name, model, bits=bits)
    other.load_calibration(tmp_path / "c.json")
    for own, loaded in zip(quantizer.wrappers, other.wrappers, strict=True):
        for kind in (engine.QuantType.INPUT, engine.QuantType.OUTPUT):
            a, b = quantizer.affine_form(own, kind), other.affine_form(loaded, kind)
            assert torch.equal(a.scale, b.scale)
            assert torch.equal(a.zero_point, b.zero_point)
            assert (a.qmin, a.qmax) == (b.qmin, b.qmax)
    if not name.startswith("lsq"):  # its steps of weights are learned, too
        assert torch.equal(model.eval()(inputs()), quantizer.bound_model(inputs()))


@pytest.mark.parametrize("name", NAMES)
def test_the_file_says_bits_scheme_grid_and_range(name, tmp_path):
    quantizer = written(name, tmp_path)
    saved = json.loads((tmp_path / "c.json").read_text())
    for wrapper in quantizer.wrappers:
        tensor = saved[wrapper.name]["input"]
        assert tensor["bits"] == 8
        assert tensor["scheme"].startswith("per_")
        low, high = tensor["range"]
        span = tensor["scale"] * (tensor["qmax"] - tensor["qmin"])
        assert high - low == pytest.approx(span, rel=0.01)
        assert len(saved[wrapper.name]["weight"]["scale"]) == wrapper.weight.shape[0]


def change(path, edit):
    saved = json.loads(path.read_text())
    edit(saved)
    path.write_text(json.dumps(saved))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda s: s.update(O=s.pop("0")), 'no layer "O"'),
        (lambda s: s.pop("2"), 'the file has no layer "2"'),
        (lambda s: s["0"].pop("input"), 'the input of layer "0": the file has none'),
        (lambda s: s["0"]["input"].update(bits=4), "bits 4 in the file, here 8"),
        (lambda s: s["0"]["input"].update(scheme="x"), "scheme x in the file, here per_tensor_aff"),
        (lambda s: s["0"]["input"].update(range=[1]), r"a range is \[min, max\] or null"),
        (lambda s: s["0"]["input"].update(range=[2, 1]), r"a range is \[min, max\] or null"),
        (
            lambda s: s["0"]["input"].update(range=[-math.inf, 2]),
            r"a range is \[min, max\] or null",
        ),
        (lambda s: s["0"]["input"].update(range=[math.nan, 2]), r"a range is \[min, max\] or null"),
        (lambda s: s["0"]["input"].update(range=[0, 10**400]), r"a range is \[min, max\] or null"),
        (lambda s: s["0"]["input"].update(range=[0, 1e39]), r"a range is \[min, max\] or null"),
        (lambda s: s["0"]["input"].update(scale=math.nan), "scale is nan, a number is needed"),
        (lambda s: s["0"]["input"].update(scale="1"), "scale is '1', a number is needed"),
        (lambda s: s["0"]["input"].update(scale=0), "a scale of 0"),
        (lambda s: s["2"].update(output=3), 'the output of layer "2": the file has none'),
    ],
)
def test_a_file_of_another_configuration_is_refused_and_nothing_changed(edit, message, tmp_path):
    quantizer = written("qat", tmp_path)
    change(tmp_path / "c.json", lambda s: s["0"]["input"].update(range=[-9, 9]))
    change(tmp_path / "c.json", edit)
    before = quantizer.wrappers[0].input_range.clone()
    with pytest.raises(CheckpointError, match=message):
        quantizer.load_calibration(tmp_path / "c.json")
    assert torch.equal(quantizer.wrappers[0].input_range, before)


@pytest.mark.parametrize("text", ["", "{", "[1]", "3", "\xff"])
def test_what_is_no_calibration_file_is_refused(text, tmp_path):
    quantizer = written("qat", tmp_path)
    (tmp_path / "c.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"c\.json"):
        quantizer.load_calibration(tmp_path / "c.json")
    with pytest.raises(CheckpointError, match="cannot be read"):
        quantizer.load_calibration(tmp_path / "none.json")


def test_a_range_that_is_null_leaves_the_activation_as_it_is(tmp_path):
    quantizer = written("qat", tmp_path)
    change(tmp_path / "c.json", lambda s: s["0"]["input"].update(range=None))
    before = quantizer.wrappers[0].input_range.clone()
    quantizer.load_calibration(tmp_path / "c.json")
    assert torch.equal(quantizer.wrappers[0].input_range, before)
