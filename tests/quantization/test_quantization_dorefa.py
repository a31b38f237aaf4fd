"""DoReFa against a float64 reference of the paper's equations, gradients included."""

import math

import numpy as np
import pytest
import torch
from models import mlp
from torch import nn

from engine.algorithms import DoReFaQuantizer
from engine.quantization import quantize_unit


def layer(bits: int, *kinds: str, weight: torch.Tensor | None = None) -> nn.Sequential:
    weight = torch.tensor([[0.3, -1.2, 0.05], [2.0, -0.4, 0.9]]) if weight is None else weight
    model = nn.Sequential(nn.Linear(weight.shape[1], weight.shape[0], bias=False))
    model.to(weight.dtype)
    with torch.no_grad():
        model[0].weight.copy_(weight)
    entry = {"quant_types": list(kinds), "quant_bits": bits, "op_types": ["Linear"]}
    DoReFaQuantizer(model, [entry]).compress()
    return model


def q(values: np.ndarray, bits: int) -> np.ndarray:
    """Equation 5."""
    return np.round((2**bits - 1) * values) / (2**bits - 1)


def weight_reference(weight: np.ndarray, bits: int) -> np.ndarray:
    """Equations 7 (one bit, with the mean of section 2.3) and 9."""
    if bits == 1:
        return np.where(weight >= 0, 1, -1) * np.abs(weight).mean()
    tanh = np.tanh(weight)
    return 2 * q(tanh / (2 * np.abs(tanh).max()) + 0.5, bits) - 1


def weight_gradient_reference(weight: np.ndarray, upstream: np.ndarray, bits: int) -> np.ndarray:
    """Equation 10: q's derivative is one; t = tanh w, m = max |t|, out = t / m.

    d out_i / d w_j = (1 - t_j^2) (delta_ij / m - [j is the peak] t_i sign(t_j) / m^2).
    """
    if bits == 1:
        return upstream
    tanh = np.tanh(weight)
    m, peak = np.abs(tanh).max(), np.abs(tanh).argmax()
    gradient = upstream / m
    gradient.ravel()[peak] -= (upstream * tanh).sum() * np.sign(tanh.ravel()[peak]) / m**2
    return gradient * (1 - tanh**2)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8, 16])
def test_weights_and_their_gradient_are_the_papers(bits):
    weight = torch.randn(5, 4, dtype=torch.float64)
    model = layer(bits, "weight", weight=weight)
    upstream = torch.randn(5, 4, dtype=torch.float64)
    quantized = model[0].weight
    quantized.backward(upstream)
    np.testing.assert_allclose(quantized.detach(), weight_reference(weight.numpy(), bits), 1e-12)
    np.testing.assert_allclose(
        model[0]._parameters["weight"].grad,
        weight_gradient_reference(weight.numpy(), upstream.numpy(), bits),
        rtol=1e-9,
    )


def test_two_bits_by_hand():
    # tanh(+-artanh x) = x: with a peak of 0.8 the levels -1, -1/3, 1/3, 1 part at -2/3, 0, 2/3.
    weight = torch.tensor([[math.atanh(x) for x in (-0.8, -0.5, -0.1, 0.1, 0.5, 0.8)]])
    expected = torch.tensor([[-1.0, -1 / 3, -1 / 3, 1 / 3, 1 / 3, 1.0]])
    torch.testing.assert_close(layer(2, "weight", weight=weight)[0].weight, expected)


def test_one_bit_takes_exactly_two_values():
    weight = torch.randn(40, 30)
    quantized = layer(1, "weight", weight=weight)[0].weight
    mean = weight.abs().mean()
    assert torch.equal(quantized.unique(), torch.stack((-mean, mean)))


def test_one_bit_of_zero_is_positive():
    assert layer(1, "weight", weight=torch.tensor([[0.0, -3.0]]))[0].weight.tolist() == [
        [1.5, -1.5]
    ]


@pytest.mark.parametrize("bits", [1, 2, 8])
def test_a_layer_of_zeros_has_finite_values_and_gradients(bits):
    model = layer(bits, "weight", weight=torch.zeros(2, 3))
    model[0].weight.sum().backward()
    assert model[0].weight.isfinite().all()
    gradient = model[0]._parameters["weight"].grad
    assert gradient.abs().max() <= 1


@pytest.mark.parametrize("kind", ["input", "output"])
@pytest.mark.parametrize("bits", [1, 2, 5])
def test_activations_are_clipped_to_the_unit_interval_and_rounded(kind, bits):
    model = nn.Sequential(nn.Identity())
    entry = {"quant_types": [kind], "quant_bits": bits, "op_types": ["Identity"]}
    DoReFaQuantizer(model, [entry]).compress()
    batch = torch.tensor([-0.7, 0.0, 0.13, 0.5, 0.77, 1.0, 1.6], requires_grad=True)
    result = model(batch)
    expected = q(np.clip(batch.detach().double().numpy(), 0, 1), bits)
    np.testing.assert_allclose(result.detach(), expected, rtol=1e-6)
    result.sum().backward()
    assert batch.grad.tolist() == [0, 1, 1, 1, 1, 1, 0]


# -- gradients (equation 12) -------------------------------------------------------------------


def gradient_of(upstream: torch.Tensor, bits: int) -> torch.Tensor:
    """What flows into a layer whose output has the gradient ``upstream``."""
    model = nn.Sequential(nn.Identity())
    entry = {"quant_types": ["gradient"], "quant_bits": bits, "op_types": ["Identity"]}
    DoReFaQuantizer(model, [entry]).compress()
    batch = torch.zeros_like(upstream, requires_grad=True)
    model(batch).backward(upstream)
    return batch.grad


def test_the_output_itself_is_not_changed_by_gradient_quantization():
    model = mlp(3, 2)
    batch = torch.randn(4, 3)
    plain = model(batch)
    entry = {"quant_types": ["gradient"], "quant_bits": 2, "op_types": ["Linear"]}
    DoReFaQuantizer(model, [entry]).compress()
    assert torch.equal(model(batch), plain)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_quantized_gradients_are_unbiased(bits):
    sample = torch.tensor([0.9, -1.0, 0.33, 0.0, -0.2])
    draws = 20000
    mean = gradient_of(sample.expand(draws, 5).clone(), bits).mean(0)
    # Noise spans one step, 2 / (2^k - 1); five standard errors of its mean.
    step = 2 / (2**bits - 1)
    torch.testing.assert_close(mean, sample, rtol=0, atol=5 * step / 2 / draws**0.5)


def test_quantized_gradients_lie_on_the_grid_of_their_own_samples_maximum():
    upstream = torch.stack((torch.randn(3, 4, 4), 100 * torch.randn(3, 4, 4)))
    for sample, before in zip(gradient_of(upstream, 3), upstream, strict=True):
        m = before.abs().max()
        level = (sample / (2 * m) + 0.5) * 7
        torch.testing.assert_close(level, level.round(), rtol=0, atol=1e-4)
        assert sample.abs().max() == m
        assert (sample - before).abs().max() <= 2 * m / 7 * 1.001


@pytest.mark.parametrize("shape", [(2, 3), (4,), ()])
def test_a_gradient_of_zeros_stays_zero_in_any_shape(shape):
    assert torch.equal(gradient_of(torch.zeros(shape), 2), torch.zeros(shape))


def test_one_sample_of_zeros_beside_another_stays_zero():
    gradient = gradient_of(torch.tensor([[0.0, 0.0], [1.0, -2.0]]), 2)
    assert gradient[0].tolist() == [0, 0]
    assert gradient[1, 1] == -2


def test_gradient_noise_follows_the_seed():
    upstream = torch.randn(3, 5)
    torch.manual_seed(3)
    first = gradient_of(upstream, 2)
    torch.manual_seed(3)
    assert torch.equal(gradient_of(upstream, 2), first)


def test_the_quantized_gradient_reaches_the_weights():
    model = layer(1, "gradient", weight=torch.ones(1, 2))
    model(torch.tensor([[1.0, 3.0]])).backward(torch.tensor([[0.25]]))
    # One output per sample: its gradient is its own maximum, which every grid holds.
    assert model[0]._parameters["weight"].grad.tolist() == [[0.25, 0.75]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_levels_finer_than_half_precision_leave_its_values(dtype):
    # 65535 levels: computed in half precision, 0.3 becomes infinite or comes back as another.
    values = torch.linspace(0, 1, 33).to(dtype).requires_grad_()
    result = quantize_unit(values, 16)
    torch.testing.assert_close(result, values, rtol=1e-3, atol=1e-5)
    result.sum().backward()
    assert torch.equal(values.grad, torch.ones_like(values))
