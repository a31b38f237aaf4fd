"""The integers of a weight are its values, whatever is folded into the scales."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import ExportError
from engine.export.integer_weight import integer_weight
from engine.quantization import AffineForm, Scheme

SHAPE = torch.Size([5, 3, 2])


def on_grid(bits, symmetric, shared, seed, dead=()):
    """A weight on a grid over its extremes, and the grid."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(SHAPE, generator=generator) + 0.3
    weight[list(dead)] = 0
    signed = symmetric
    axis = None if shared == "tensor" else 0
    group = 4 if shared == "group" else None
    scheme = Scheme(bits, symmetric, signed, axis, group)
    scale, zero_point = scheme.parameters(*scheme.extremes(scheme.arranged(weight)))
    if axis is not None:
        flat = (-1,) if group is None else (SHAPE[0], -1)
        scale, zero_point = scale.reshape(flat), zero_point.reshape(flat)
    form = AffineForm(scale, zero_point.int(), scheme.qmin, scheme.qmax, axis, group)
    return form.values(form.integers(weight)), form


@settings(deadline=None, max_examples=80)
@given(
    bits=st.integers(2, 8),
    symmetric=st.booleans(),
    shared=st.sampled_from(["tensor", "channel", "group"]),
    turned=st.lists(st.booleans(), min_size=5, max_size=5),
    seed=st.integers(0, 99),
)
def test_integers_and_scales_are_the_folded_weight(bits, symmetric, shared, turned, seed):
    weight, form = on_grid(bits, symmetric, shared, seed)
    factor = torch.tensor([-0.5 if t else 2.5 for t in turned])
    found = integer_weight(weight, form, factor, 0)
    expected = weight.double() * factor.view(5, 1, 1).double()
    assert torch.allclose(found.dequantized().double(), expected, rtol=1e-6, atol=1e-9)
    assert bool((found.scale > 0).all())
    assert found.values.dtype in (torch.int8, torch.uint8)


@settings(deadline=None, max_examples=40)
@given(
    bits=st.integers(2, 8),
    shared=st.sampled_from(["tensor", "channel", "group"]),
    seed=st.integers(),
)
def test_without_a_norm_values_come_back_bit_by_bit(bits, shared, seed):
    weight, form = on_grid(bits, True, shared, seed % 1000)
    assert torch.equal(integer_weight(weight, form, None, 0).dequantized(), weight)


def test_a_symmetric_weight_has_zero_points_of_zero_also_where_norms_turn_signs():
    weight, form = on_grid(8, True, "channel", 0)
    found = integer_weight(weight, form, torch.tensor([1.0, -1, 1, -1, -1]), 0)
    assert found.values.dtype == torch.int8
    assert not found.zero_point.any()


def test_an_affine_weight_of_one_scale_has_one_zero_point():
    weight, form = on_grid(8, False, "tensor", 1)
    found = integer_weight(weight, form, None, 0)
    assert found.values.dtype == torch.int8
    assert found.zero_point.dim() == 0
    assert torch.equal(found.dequantized(), weight)


def test_affine_channels_keep_their_zero_points_where_eight_bits_are_full():
    weight, form = on_grid(8, False, "channel", 2)
    found = integer_weight(weight, form, None, 0)
    assert found.values.dtype == torch.uint8
    assert len(found.zero_point.unique()) > 1
    assert torch.equal(found.dequantized(), weight)


def test_few_bits_are_spread_over_eight_without_changing_a_value():
    weight, form = on_grid(2, True, "channel", 3)
    found = integer_weight(weight, form, None, 0)
    assert found.values.abs().max() == 64  # one step of {-1, 0, 1}, times a power of two
    assert torch.equal(found.dequantized(), weight)


def test_zeros_of_pruning_are_the_zero_point():
    weight, form = on_grid(8, False, "channel", 4)
    weight[:, 1] = 0
    found = integer_weight(weight, form, torch.full((5,), -3.0), 0)
    zeros = found.zero_point.view(5, 1).expand(5, 2)
    assert torch.equal(found.values[:, 1].long(), zeros)


def test_values_off_the_grid_are_refused():
    weight, form = on_grid(8, True, "tensor", 5)
    with pytest.raises(ExportError, match=r"not on the grid that affine_form\(\) states"):
        integer_weight(weight * 1.01, form, None, 0)


def test_more_than_eight_bits_are_refused_with_what_to_do():
    weight, form = on_grid(12, True, "tensor", 6)
    with pytest.raises(ExportError) as caught:
        integer_weight(weight, form, None, 0)
    assert str(caught.value) == (
        "its integers lie between -2047 and 2047, integer kernels take 8 bits\n"
        '  give the layer fewer "quant_bits", at most 8, or exclude it'
    )
