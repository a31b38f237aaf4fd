"""BNN and naive quantization, by hand."""

import pytest
import torch
from models import mlp, train_step
from torch import nn

from engine.algorithms import BNNQuantizer, NaiveQuantizer


def binary(kind: str, op_type: str, model: nn.Module) -> BNNQuantizer:
    entry = {"quant_types": [kind], "quant_bits": 1, "op_types": [op_type]}
    quantizer = BNNQuantizer(model, [entry])
    quantizer.compress()
    return quantizer


def test_weights_are_signs_and_zero_is_positive():
    model = nn.Sequential(nn.Linear(4, 1))
    nn.init.zeros_(model[0].weight)
    with torch.no_grad():
        model[0].weight[0, 1:] = torch.tensor([-0.1, 3.0, -0.0])
    binary("weight", "Linear", model)
    assert model[0].weight.tolist() == [[1, -1, 1, 1]]


@pytest.mark.parametrize("kind", ["input", "output"])
def test_activations_are_signs_and_their_gradient_stops_beyond_one(kind):
    model = nn.Sequential(nn.Identity())
    binary(kind, "Identity", model)
    batch = torch.tensor([-1.01, -1.0, -0.2, 0.0, 0.9, 1.0, 1.01], requires_grad=True)
    result = model(batch)
    assert result.tolist() == [-1, -1, -1, 1, 1, 1, 1]
    upstream = torch.tensor([1.0, 2, 3, 4, 5, 6, 7])
    result.backward(upstream)
    assert batch.grad.tolist() == [0, 2, 3, 4, 5, 6, 0]
    assert upstream.tolist() == [1, 2, 3, 4, 5, 6, 7]


def test_the_gradient_of_a_weight_beyond_one_is_zero():
    model = nn.Sequential(nn.Linear(3, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[0.5, 1.5, -1.0]]))
    binary("weight", "Linear", model)
    model(torch.tensor([[2.0, 3.0, 4.0]])).sum().backward()
    assert model[0]._parameters["weight"].grad.tolist() == [[2, 0, 4]]


def test_latent_weights_are_clipped_after_each_step_and_others_are_not():
    model = mlp(4, 5, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=100.0)
    entry = {"quant_types": ["weight"], "quant_bits": 1, "op_names": ["0"]}
    BNNQuantizer(model, [entry], optimizer).compress()
    train_step(model, optimizer, torch.randn(6, 4))
    assert model[0]._parameters["weight"].abs().max() == 1
    assert model[0].bias.abs().max() > 1
    assert model[2].weight.abs().max() > 1


def naive(model: nn.Module, bits: int = 8) -> NaiveQuantizer:
    quantizer = NaiveQuantizer(model, [{"quant_bits": bits, "op_types": ["default"]}])
    quantizer.compress()
    return quantizer


def test_naive_rounds_by_hand():
    model = nn.Sequential(nn.Linear(4, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[3.0, -1.4, 0.6, -0.4]]))
    naive(model, bits=3)
    assert model[0].weight.tolist() == [[3, -1, 1, 0]]


def test_naive_needs_no_configuration():
    model = mlp()
    quantizer = NaiveQuantizer(model)
    quantizer.compress()
    assert [w.name for w in quantizer.get_modules_wrapper()] == ["0", "2"]
    assert len(model[0].weight.unique()) <= 255


def test_naive_is_off_by_a_quarter_of_a_step_on_average():
    # NNI truncates, which makes it half a step.
    model = nn.Sequential(nn.Linear(200, 200))
    nn.init.uniform_(model[0].weight, -1, 1)
    weight = model[0].weight.detach().clone()
    naive(model)
    step = weight.abs().max() / 127
    error = (model[0].weight - weight).abs() / step
    assert error.mean().item() == pytest.approx(0.25, abs=0.01)
    assert error.max() <= 0.5001
    assert ((model[0].weight - weight) / step).mean().abs() < 0.01


def test_naive_trains_through():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    naive(model)
    before = model[0]._parameters["weight"].detach().clone()
    train_step(model, optimizer, torch.randn(5, 8))
    assert not torch.equal(model[0]._parameters["weight"], before)
