"""Gradients of values that stand exactly at a bound.

PyTorch's own ``clamp`` passes the gradient there in some versions and stops it in others. What is
clipped here follows its paper, or the grid, in every version.
"""

import pytest
import torch
from torch import nn

from engine.algorithms import BNNQuantizer, DoReFaQuantizer, QAT_Quantizer
from engine.quantization import Scheme, fake_quantize, quantize_clipped
from engine.quantization.learned import round_learned
from engine.quantization.scalars import HIGH, LOW, SMALL, Scalars, place, round_shared


def gradient(function, values, dtype=torch.float32):
    """Return what flows back to ``values`` from a gradient of 1 of each result."""
    tensor = torch.tensor(values, dtype=dtype, requires_grad=True)
    result = function(tensor)
    result.backward(torch.ones_like(result))
    assert tensor.grad.dtype == dtype
    return tensor.grad.tolist()


def quantizing(cls, kind, bits):
    model = nn.Sequential(nn.Identity())
    entry = {"quant_types": [kind], "quant_bits": bits, "op_types": ["Identity"]}
    cls(model, [entry]).compress()
    return model


AROUND_UNIT = [-torch.inf, -1e-6, -0.0, 0.0, 1e-6, 0.5, 1.0, 1 + 1e-6, torch.inf, torch.nan]


@pytest.mark.parametrize("kind", ["input", "output"])
@pytest.mark.parametrize("bits", [1, 2, 8])
def test_dorefas_estimator_holds_on_the_closed_interval(kind, bits):
    """Section 2.4 and eq. 6: for r in [0, 1] the gradient passes."""
    model = quantizing(DoReFaQuantizer, kind, bits)
    assert gradient(model, AROUND_UNIT) == [0, 0, 1, 1, 1, 1, 1, 0, 0, 0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_closed_interval_in_other_dtypes(dtype):
    values = [-0.25, 0.0, 0.5, 1.0, 1.25]
    assert gradient(lambda x: quantize_clipped(x, 2), values, dtype) == [0, 1, 1, 1, 0]
    result = quantize_clipped(torch.tensor(values, dtype=dtype), 1)
    assert result.tolist() == [0, 0, 0, 1, 1]  # half to even
    assert result.dtype == dtype


def test_bnns_estimator_holds_on_the_closed_interval():
    """Eq. 4: |r| <= 1."""
    model = quantizing(BNNQuantizer, "input", 1)
    values = [-1 - 1e-6, -1.0, 0.0, 1.0, 1 + 1e-6]
    assert gradient(model, values) == [0, 1, 1, 1, 0]


def test_lsqs_estimator_holds_on_the_open_interval():
    """Eq. 3 and 5: inside is strict; at a bound the step gets the bound itself."""
    scale = torch.tensor(0.5, requires_grad=True)
    values = [-1.5, -1.0, -0.75, 0.0, 0.5, 1.0]  # -3, -2, -1.5, 0, 1 and 2 steps
    assert gradient(lambda v: round_learned(v, scale, None, -2, 1, 1.0), values) == [
        *(0, 0, 1, 1, 0, 0)
    ]
    assert scale.grad == -2 - 2 + (-2 + 1.5) + 0 + 1 + 1


def test_the_ends_of_a_grid_are_inside_of_it():
    """Both ways to round: what is an integer of the grid is not clipped."""
    values = [-2.6, -2.0, 0.0, 1.0, 1.6]  # in steps of 1 from -2 to 1, with half a step beyond
    one = torch.tensor(1.0)
    for zero in (None, torch.tensor(0.0)):
        rounded = gradient(lambda x, zero=zero: fake_quantize(x, one, zero, -2, 1), values)
        assert rounded == [0, 1, 1, 1, 0]


@pytest.mark.parametrize("size", [1, SMALL])
def test_the_ends_of_a_shared_grid_are_inside_of_it(size):
    scheme = Scheme(2, symmetric=False)
    scalars, module = Scalars({"scale": 0, "zero": 0}, 3), nn.Module()
    module.register_buffer("scale", torch.ones(()))
    module.register_buffer("zero", torch.zeros(()))
    scalars.link(module)
    scalars.floats[LOW], scalars.floats[HIGH] = -2.0, 1.0
    place(scalars.floats, scheme)
    values = [-2.6, -2.0, 0.0, 1.0, 1.6] * size
    assert gradient(lambda x: round_shared(x, scalars, scheme), values) == [0, 1, 1, 1, 0] * size


def test_qats_range_has_its_ends_inside():
    """The first batch sets the range: its extremes, on the grid, get their gradient."""
    model = quantizing(QAT_Quantizer, "input", 8)
    batch = [0.0, 1.0, 255.0]
    assert gradient(model, batch) == [1, 1, 1]
    assert gradient(model.eval(), [0.0, 255.0, 300.0]) == [1, 1, 0]
