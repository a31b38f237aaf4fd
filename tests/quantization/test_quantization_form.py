"""The affine form of each quantizer: integers that give its values back."""

import pytest
import torch
from models import mlp
from torch import nn

from engine import ExportError, Quantizer, QuantType
from engine.algorithms import (
    BNNQuantizer,
    DoReFaQuantizer,
    NaiveQuantizer,
    PTQQuantizer,
    QAT_Quantizer,
)
from engine.export import load_quantized

SCHEMES = [f"per_{a}_{b}" for a in ("tensor", "channel", "group") for b in ("affine", "symmetric")]


def attach(cls, model, *kinds, bits=4, **more):
    types = sorted({type(m).__name__ for m in model.modules()} - {"Sequential", "ReLU"})
    entry = {"op_types": types, "quant_types": list(kinds), "quant_bits": bits, **more}
    quantizer = cls(model, [entry])
    quantizer.compress()
    return quantizer


@pytest.mark.parametrize("cls", [NaiveQuantizer, QAT_Quantizer, PTQQuantizer])
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(
    "layer",
    [
        lambda: nn.Linear(20, 6),
        lambda: nn.Conv2d(5, 6, 3),
        lambda: nn.ConvTranspose2d(5, 6, 3),
        lambda: nn.ConvTranspose1d(5, 1, 3),
        lambda: nn.Embedding(9, 20),
    ],
    ids=["linear", "conv", "transposed", "one channel", "embedding"],
)
def test_integers_and_scales_give_the_weight_back_bit_by_bit(cls, scheme, layer, tmp_path):
    model = nn.Sequential(layer())
    shape = model[0].weight.shape
    quantizer = attach(cls, model, "weight", quant_scheme=scheme, quant_group_size=8)
    form = quantizer.affine_form(quantizer.wrappers[0], QuantType.WEIGHT)
    weight = model[0].weight.detach()
    integers = form.integers(weight)
    assert integers.dtype == torch.int32
    assert form.qmin <= integers.min()
    assert integers.max() <= form.qmax
    assert torch.equal(form.values(integers), weight)
    axis = 1 if isinstance(model[0], nn.modules.conv._ConvTransposeNd) else 0
    members = weight.numel() // shape[axis]
    assert form.axis == (None if "tensor" in scheme else axis)
    assert form.group_size == (8 if "group" in scheme else None)
    groups = {"tensor": (), "channel": (shape[axis],), "group": (shape[axis], -(-members // 8))}
    assert form.scale.shape == form.zero_point.shape == groups[scheme.split("_")[1]]
    # The packed file holds the same, and nothing as large as the weight beside the integers.
    quantizer.export_model(tmp_path / "model.pth", tmp_path / "calibration.json")
    fresh = nn.Sequential(layer())
    assert torch.equal(load_quantized(fresh, tmp_path / "model.pth")[0].weight, weight)
    (packed,) = torch.load(tmp_path / "model.pth", weights_only=True)["quantized"].values()
    assert packed["table"] is None
    assert packed["scale"].numel() == form.scale.numel()


def test_an_activations_form_rounds_as_the_quantizer_does():
    model = mlp(6, 3)
    quantizer = attach(QAT_Quantizer, model, "weight", "input", "output")
    model(torch.randn(20, 6))
    (wrapper,) = quantizer.wrappers
    model.eval()
    for key, quantize in (
        (QuantType.INPUT, quantizer.quantize_input),
        (QuantType.OUTPUT, quantizer.quantize_output),
    ):
        form = quantizer.affine_form(wrapper, key)
        values = 3 * torch.randn(50)
        torch.testing.assert_close(form.values(form.integers(values)), quantize(values, wrapper))


def test_a_form_is_a_copy():
    model = mlp(6, 3)
    quantizer = attach(QAT_Quantizer, model, "weight")
    form = quantizer.affine_form(quantizer.wrappers[0], QuantType.WEIGHT)
    before = form.scale.clone()
    with torch.no_grad():
        model[0]._parameters["weight"].mul_(7)
    _ = model[0].weight
    assert torch.equal(form.scale, before)


def test_a_weight_changed_by_hand_has_its_form_at_once():
    model = mlp(6, 3)
    quantizer = attach(QAT_Quantizer, model, "weight")
    with torch.no_grad():
        model[0]._parameters["weight"].mul_(7)
    form = quantizer.affine_form(quantizer.wrappers[0], QuantType.WEIGHT)
    assert torch.equal(form.values(form.integers(model[0].weight)), model[0].weight)


def test_an_activation_without_a_range_is_named():
    quantizer = attach(QAT_Quantizer, mlp(6, 3), "weight", "output")
    with pytest.raises(ExportError) as caught:
        quantizer.affine_form(quantizer.wrappers[0], QuantType.OUTPUT)
    assert str(caught.value) == (
        'the output of layer "0" has no range yet: run batches through the model in training '
        "mode, or calibrate it, before it is exported"
    )


@pytest.mark.parametrize("bits", [1, 2, 3, 7])
def test_dorefas_levels_are_integers(bits):
    model = mlp(30, 7)
    quantizer = attach(DoReFaQuantizer, model, "weight", "input", bits=bits)
    (wrapper,) = quantizer.wrappers
    form = quantizer.affine_form(wrapper, QuantType.WEIGHT)
    weight = model[0].weight.detach()
    torch.testing.assert_close(form.values(form.integers(weight)), weight)
    assert set(form.integers(weight).flatten().tolist()) <= set(range(form.qmin, form.qmax + 1, 2))
    form = quantizer.affine_form(wrapper, QuantType.INPUT)
    values = torch.linspace(-0.49, 1.5, 40)  # no tie among them
    rounded = quantizer.quantize_input(values, wrapper)
    torch.testing.assert_close(form.values(form.integers(values)), rounded)


def test_bnns_weights_have_a_form_and_its_signs_have_none():
    model = mlp(6, 3)
    quantizer = attach(BNNQuantizer, model, "weight", "output", bits=1)
    (wrapper,) = quantizer.wrappers
    form = quantizer.affine_form(wrapper, QuantType.WEIGHT)
    assert torch.equal(form.values(form.integers(model[0].weight)), model[0].weight)
    with pytest.raises(ExportError, match='bnn has no affine form for the output of layer "0"'):
        quantizer.affine_form(wrapper, QuantType.OUTPUT)


class Cubes(Quantizer):
    """Values that no scale and zero point give."""

    def quantize_weight(self, weight):
        return weight.sign() * weight.abs().mul(4).round().pow(3) / 64


class Halves(Quantizer):
    """A quantizer that keeps what ``quant_backward`` is told."""

    def quantize_weight(self, weight, wrapper):
        wrapper.weight_scale, wrapper.weight_zero_point = torch.tensor(0.5), 0
        wrapper.weight_qmin, wrapper.weight_qmax = -8, 7
        return (2 * weight).round().clamp(-8, 7) / 2


def test_a_quantizer_of_ones_own_has_a_form_where_it_keeps_one():
    model = mlp(6, 3)
    quantizer = attach(Halves, model, "weight")
    form = quantizer.affine_form(quantizer.wrappers[0], QuantType.WEIGHT)
    assert torch.equal(form.values(form.integers(model[0].weight)), model[0].weight)
    quantizer.unwrap()
    quantizer = attach(Cubes, model, "weight")
    with pytest.raises(ExportError) as caught:
        quantizer.affine_form(quantizer.wrappers[0], QuantType.WEIGHT)
    assert str(caught.value) == (
        'Cubes has no affine form for the weight of layer "0": it cannot be exported as integers '
        "with a scale and a zero point"
    )
