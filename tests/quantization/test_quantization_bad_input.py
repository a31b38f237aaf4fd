"""What a user gets wrong, for every quantizer: the layer is named, or the result is defined."""

import math

import pytest
import torch
from models import ConvNet, calibration_of, mlp
from torch import nn

from engine import ConfigError, EngineError, ExportError, QuantType
from engine.algorithms import QAT_Quantizer
from engine.plugins import registry

QUANTIZERS = sorted(
    plugin.name
    for plugin in registry.algorithms()
    if plugin.kind == "quantization" and plugin.distribution == "engine"
)
#: Quantizers whose activations have ranges.
RANGED = {"lsq", "lsq_plus", "ptq", "qat"}


@pytest.fixture(params=QUANTIZERS)
def name(request):
    return request.param


def make(name, model, **entry):
    plugin = registry.find(name)
    batches = calibration_of(plugin) if plugin.calibration == "required" else {}
    return plugin.load()(model, [{"op_types": ["Linear"], **entry}], **batches)


@pytest.mark.parametrize("bits", [0, -1, 17, 33, 2.5, "8", True])
def test_bits_out_of_range_are_refused_at_their_place(name, bits):
    for given, place in ((bits, "quant_bits"), ({"weight": bits}, "quant_bits/weight")):
        with pytest.raises(ConfigError) as caught:
            make(name, mlp(), quant_types=["weight"], quant_bits=given)
        assert [problem.pointer for problem in caught.value.problems] == [f"/config_list/0/{place}"]
        assert name in str(caught.value)


def test_quant_types_without_bits_are_refused(name):
    if name == "naive":  # which quantizes weights to 8 bits without being told
        assert make(name, mlp(), quant_types=["weight"]).wrappers
        return
    with pytest.raises(ConfigError, match='"quant_bits" is missing'):
        make(name, mlp(), quant_types=["weight"])
    with pytest.raises(ConfigError, match='quant_bits has nothing for "input"'):
        make(name, mlp(), quant_types=["weight", "input"], quant_bits={"weight": 1})


def test_bits_without_their_type_are_refused(name):
    bits = 1 if name == "bnn" else 4
    with pytest.raises(ConfigError, match='"input" is not one of quant_types'):
        make(name, mlp(), quant_types=["weight"], quant_bits={"weight": bits, "input": bits})


def test_a_layer_without_a_weight_is_named(name):
    bits = 1 if name == "bnn" else 4
    with pytest.raises(ConfigError) as caught:
        make(name, mlp(), op_types=["ReLU"], quant_types=["weight"], quant_bits=bits)
    (problem,) = caught.value.problems
    assert problem.message == 'layer "1" (ReLU) has no weight of its own'
    assert problem.pointer == "/config_list/0"


def test_a_misspelt_type_gets_the_nearest(name):
    with pytest.raises(ConfigError, match='did you mean "weight"'):
        make(name, mlp(), quant_types=["weights"], quant_bits=1)


def quantized(name, model, *kinds):
    quantizer = make(name, model, op_types=["Identity"], quant_types=list(kinds), quant_bits=4)
    quantizer.compress()
    return quantizer


def show(name, quantizer, model, batch):
    """Let the quantizer see a batch in the way it finds ranges."""
    if name == "ptq":
        quantizer.calibrate([batch])
    else:
        model(batch)


@pytest.mark.parametrize("name", sorted(RANGED))
@pytest.mark.parametrize("value", [0.0, 2.0, -3.0])
def test_a_constant_activation_comes_back_to_half_a_step(name, value):
    model = nn.Sequential(nn.Identity())
    quantizer = quantized(name, model, "output")
    batch = torch.full((4, 5), value)
    show(name, quantizer, model, batch)
    (wrapper,) = quantizer.wrappers
    scale = wrapper.output_scale.item()
    assert math.isfinite(scale)
    assert scale > 0
    assert (model(batch) - batch).abs().max().item() <= 0.51 * scale
    assert (model(torch.zeros(1, 5)) == 0).all()


@pytest.mark.parametrize("name", sorted(RANGED))
def test_export_before_any_range_was_seen_says_so_and_writes_nothing(name, tmp_path):
    model = mlp(6, 3)
    quantizer = make(name, model, quant_types=["weight", "input"], quant_bits=4)
    quantizer.compress()
    (wrapper,) = quantizer.wrappers
    with pytest.raises(ExportError, match='the input of layer "0" has no range yet'):
        quantizer.affine_form(wrapper, QuantType.INPUT)
    with pytest.raises(ExportError, match="no activation has a range yet: the model was quantized"):
        quantizer.export_model(tmp_path / "model.pth", tmp_path / "calibration.json")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        (3, "calibration got int in place of batches"),
        (
            [torch.zeros(2, 5)],
            r"a batch \(torch.float32 of shape \[2, 5\]\) does not go",
        ),
        ([(torch.zeros(2, 6).long(), 1)], r"batch \(torch.int64 of shape \[2, 6\]\) does not go"),
        ([None], r"a batch \(NoneType\) does not go through the model: "),
        (
            [{"y": torch.zeros(2, 6)}],
            r"a batch \(dict\) does not go through the model: ",
        ),
    ],
)
def test_batches_that_the_model_does_not_take_are_refused_and_no_range_is_set(batches, message):
    quantizer = make("ptq", mlp(6, 3), quant_types=["weight", "input"], quant_bits=8)
    model = quantizer.compress().train()
    with pytest.raises(EngineError, match=message):
        quantizer.calibrate(batches)
    assert model.training
    with pytest.raises(ExportError, match="has no range yet"):
        quantizer.affine_form(quantizer.wrappers[0], QuantType.INPUT)


def test_what_a_forward_of_the_callers_own_raises_is_passed_on():
    quantizer = make("ptq", mlp(6, 3), quant_types=["weight", "input"], quant_bits=8)
    quantizer.compress()
    with pytest.raises(ZeroDivisionError):
        quantizer.calibrate([torch.zeros(2, 6)], forward=lambda model, batch: 1 / 0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_training_goes_on_after_a_batch_that_is_not_finite(bad):
    model = ConvNet()
    entry = {"op_types": ["Conv2d"], "quant_types": ["weight", "input"], "quant_bits": 8}
    quantizer = QAT_Quantizer(model, [entry])
    quantizer.compress()
    good = torch.rand(4, 1, 8, 8)
    model.conv1(good)
    before = quantizer.wrappers[0].input_range.clone()
    model.conv1(torch.full((4, 1, 8, 8), bad))
    assert torch.equal(quantizer.wrappers[0].input_range, before)
    assert model.conv1(good).isfinite().all()
