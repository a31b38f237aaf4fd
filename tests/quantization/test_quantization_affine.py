"""The affine grid against numbers by hand, NNI's ground truths and a float64 reference."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.quantization import affine_parameters, dequantize, fake_quantize, quantize

finite = st.floats(-1e4, 1e4, width=32)
pairs = st.tuples(finite, finite).map(sorted).filter(lambda ends: max(map(abs, ends)) > 1e-3)
bits = st.integers(1, 16)


def parameters(low: float, high: float, qmin: int, qmax: int, **options: bool):
    scale, zero_point = affine_parameters(
        torch.tensor(low), torch.tensor(high), qmin, qmax, **options
    )
    return scale.item(), zero_point.item()


def reference(values: np.ndarray, scale: float, zero_point: float, qmin: int, qmax: int):
    """Fake quantization in float64, value by value; Python's round is half to even."""
    result = []
    for value in values.astype(np.float64).ravel():
        q = min(max(round(value / scale) + zero_point, qmin), qmax)
        result.append((q - zero_point) * scale)
    return np.array(result).reshape(values.shape)


def test_the_range_is_widened_to_hold_zero():
    # NNI's ground truth: [[1, 2], [3, 5]] in 8 bits has scale 5/255 and zero point 0.
    assert parameters(1.0, 5.0, 0, 255) == (pytest.approx(5 / 255), 0)
    assert parameters(-5.0, -1.0, 0, 255) == (pytest.approx(5 / 255), 255)


def test_a_range_on_both_sides_of_zero_has_its_zero_inside():
    # NNI's ground truth: [[-1, 2], [3, 5]] has scale 6/255; -min/scale is 42.5, a tie.
    scale, zero_point = parameters(-1.0, 5.0, 0, 255)
    assert scale == pytest.approx(6 / 255)
    assert zero_point in (42, 43)


def test_symmetric_has_zero_point_zero_and_the_larger_side_as_its_end():
    assert parameters(-1.0, 2.54, -127, 127, symmetric=True) == (pytest.approx(0.02), 0)
    assert parameters(-2.54, 1.0, -127, 127, symmetric=True) == (pytest.approx(0.02), 0)


@pytest.mark.parametrize("symmetric", [False, True])
def test_a_tensor_of_zeros_has_scale_one_and_stays_zero(symmetric):
    scale, zero_point = affine_parameters(
        torch.zeros(()), torch.zeros(()), -128, 127, symmetric=symmetric
    )
    assert (scale.item(), zero_point.item()) == (1, 0)
    zeros = torch.zeros(3)
    assert torch.equal(fake_quantize(zeros, scale, zero_point, -128, 127), zeros)


@pytest.mark.parametrize("constant", [3.0, -3.0, 1e-30])
def test_a_constant_comes_back_as_it_was(constant):
    tensor = torch.full((4,), constant)
    scale, zero_point = affine_parameters(*tensor.aminmax(), 0, 255)
    torch.testing.assert_close(fake_quantize(tensor, scale, zero_point, 0, 255), tensor)


@pytest.mark.parametrize(
    ("low", "high"), [(math.nan, 1.0), (-1.0, math.inf), (-math.inf, math.inf), (-3e38, 3e38)]
)
@pytest.mark.parametrize("symmetric", [False, True])
def test_a_range_without_an_end_gives_scale_one(low, high, symmetric):
    scale, zero_point = parameters(low, high, -8, 7, symmetric=symmetric)
    if not (symmetric and high == 3e38):  # which is a range like any other
        assert (scale, zero_point) == (1, 0)


def test_nan_stays_and_infinity_clips():
    tensor = torch.tensor([math.nan, math.inf, -math.inf], requires_grad=True)
    result = fake_quantize(tensor, torch.tensor(0.5), torch.tensor(2.0), 0, 7)
    assert result[0].isnan()
    assert result[1:].tolist() == [2.5, -1.0]
    result.sum().backward()
    assert tensor.grad[1:].tolist() == [0, 0]


def test_integers_that_leave_no_room_are_refused():
    with pytest.raises(ValueError, match=r"qmin < qmax, got \[3, 3\]"):
        affine_parameters(torch.zeros(()), torch.ones(()), 3, 3)
    with pytest.raises(ValueError, match=r"qmin < 0 < qmax, got \[0, 255\]"):
        affine_parameters(torch.zeros(()), torch.ones(()), 0, 255, symmetric=True)


def test_halves_round_to_even():
    values = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, -2.5])
    result = fake_quantize(values, torch.tensor(1.0), torch.tensor(0.0), -8, 7)
    assert result.tolist() == [0, 2, 2, 0, -2, -2]


def test_the_gradient_passes_inside_and_stops_where_values_clip():
    # Grid 0..3 at scale 1: 3.4 still rounds to 3, 3.6 is clipped; so are -0.6 and not -0.4.
    tensor = torch.tensor([-0.6, -0.4, 0.0, 1.2, 3.0, 3.4, 3.6, 9.0], requires_grad=True)
    upstream = torch.tensor([1.0, 2, 3, 4, 5, 6, 7, 8])
    fake_quantize(tensor, torch.tensor(1.0), torch.tensor(0.0), 0, 3).backward(upstream)
    assert tensor.grad.tolist() == [0, 2, 3, 4, 5, 6, 0, 0]


def test_never_clips_has_the_identity_as_its_gradient():
    tensor = torch.tensor([-9.0, 0.0, 9.0], requires_grad=True)
    result = fake_quantize(tensor, torch.tensor(1.0), torch.tensor(0.0), 0, 3, never_clips=True)
    result.backward(torch.tensor([1.0, 2, 3]))
    assert result.tolist() == [0, 0, 3]
    assert tensor.grad.tolist() == [1, 2, 3]


def test_neither_the_tensor_nor_the_incoming_gradient_is_changed():
    tensor = torch.linspace(-9, 9, 7, requires_grad=True)
    before, upstream = tensor.detach().clone(), torch.ones(7)
    fake_quantize(tensor, torch.tensor(1.0), torch.tensor(0.0), 0, 3).backward(upstream)
    assert torch.equal(tensor.detach(), before)
    assert torch.equal(upstream, torch.ones(7))


def test_an_expanded_gradient_is_taken():
    tensor = torch.linspace(-9, 9, 6).view(2, 3).requires_grad_()
    fake_quantize(tensor, torch.tensor(1.0), torch.tensor(0.0), 0, 3).sum().backward()
    assert tensor.grad.tolist() == [[0, 0, 0], [1, 0, 0]]


def test_each_channel_may_have_its_own_grid():
    # By hand: row 0 in steps of 1, row 1 in steps of 0.1 around zero point 5.
    tensor = torch.tensor([[0.4, 1.6, 9.0], [0.04, 0.26, -9.0]], requires_grad=True)
    scale, zero_point = torch.tensor([[1.0], [0.1]]), torch.tensor([[0.0], [5.0]])
    result = fake_quantize(tensor, scale, zero_point, 0, 7)
    torch.testing.assert_close(result, torch.tensor([[0.0, 2.0, 7.0], [0.0, 0.2, -0.5]]))
    result.sum().backward()
    assert tensor.grad.tolist() == [[1, 1, 0], [1, 0, 0]]


def test_each_channel_has_the_parameters_it_would_have_alone():
    rows = torch.tensor([[-1.0, 5.0], [1.0, 2.0], [0.0, 0.0]])
    low, high = rows.aminmax(dim=1, keepdim=True)
    together = affine_parameters(low, high, 0, 255)
    for row in range(3):
        alone = affine_parameters(low[row], high[row], 0, 255)
        assert torch.equal(together[0][row], alone[0])
        assert torch.equal(together[1][row], alone[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_dtype_stays_and_half_precision_is_computed_in_float32(dtype):
    tensor = torch.linspace(-1, 3, 50).to(dtype).requires_grad_()
    scale, zero_point = affine_parameters(*tensor.detach().aminmax(), 0, 65535)
    assert scale.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    result = fake_quantize(tensor, scale, zero_point, 0, 65535)
    assert result.dtype == dtype
    # 16 bits are finer than half precision. A zero point in bfloat16 is off by up to 128 steps.
    torch.testing.assert_close(result, tensor, rtol=1e-3, atol=0.5 * scale.item())
    result.sum().backward()
    assert tensor.grad.dtype == dtype
    assert torch.equal(tensor.grad, torch.ones_like(tensor))


@settings(deadline=None, max_examples=60)
@given(pairs, bits)
def test_zero_is_exact_and_the_error_at_most_half_a_step(ends, width):
    low, high = ends
    qmax = 2**width - 1
    scale, zero_point = affine_parameters(torch.tensor(low), torch.tensor(high), 0, qmax)
    zero = fake_quantize(torch.zeros(1), scale, zero_point, 0, qmax)
    assert zero.item() == 0
    # The nudge to an exact zero moves the ends by at most half a step.
    inside = torch.linspace(min(low, 0), max(high, 0), 31)
    error = (fake_quantize(inside, scale, zero_point, 0, qmax) - inside).abs().max()
    assert error <= scale * (1 + 1e-3) + 1e-6
    between = inside.clamp(*(scale * (end - zero_point) for end in (0, qmax)))
    error = (fake_quantize(between, scale, zero_point, 0, qmax) - between).abs().max()
    assert error <= 0.5 * scale * (1 + 2e-2) + 1e-6


@settings(deadline=None, max_examples=60)
@given(st.lists(finite, min_size=1, max_size=20), pairs, bits)
def test_values_are_those_of_a_float64_reference(values, ends, width):
    qmin, qmax = -(2 ** (width - 1)), 2 ** (width - 1) - 1
    scale, zero_point = affine_parameters(*map(torch.tensor, ends), qmin, qmax)
    # Exactly on the grid and safely between its points, never at a tie.
    tensor = (torch.tensor(values) / scale).floor() * scale + 0.3 * scale
    got = fake_quantize(tensor, scale, zero_point, qmin, qmax)
    q = tensor.double() / scale.double()
    clear = (q - q.floor() - 0.5).abs() > 1e-2
    want = reference(tensor.numpy(), scale.item(), zero_point.item(), qmin, qmax)
    np.testing.assert_allclose(got[clear], want[clear.numpy()], rtol=1e-5, atol=1e-12)


@settings(deadline=None, max_examples=60)
@given(st.lists(finite, min_size=1, max_size=20), pairs, bits)
def test_what_is_on_the_grid_stays_and_is_at_most_two_to_the_bits_values(values, ends, width):
    qmax = 2**width - 1
    scale, zero_point = affine_parameters(*map(torch.tensor, ends), 0, qmax)
    once = fake_quantize(torch.tensor(values), scale, zero_point, 0, qmax)
    assert torch.equal(fake_quantize(once, scale, zero_point, 0, qmax), once)
    integers = quantize(once, scale, zero_point, 0, qmax)
    assert torch.equal(integers, integers.round().clamp(0, qmax))
    assert torch.equal(dequantize(integers, scale, zero_point), once)


@settings(deadline=None, max_examples=60)
@given(st.lists(finite, min_size=2, max_size=30), bits)
def test_a_tensor_over_its_own_extremes_moves_by_no_more_than_a_step(values, width):
    tensor = torch.tensor(values)
    low, high = tensor.aminmax()
    scale, zero_point = affine_parameters(low, high, 0, 2**width - 1)
    result = fake_quantize(tensor, scale, zero_point, 0, 2**width - 1, never_clips=True)
    assert (result - tensor).abs().max() <= scale * (1 + 1e-3) + 1e-6
