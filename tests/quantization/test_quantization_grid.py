"""Grids: numbers in Python and in tensors give the same, in every way that they are kept."""

import copy
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from engine import QuantType, Wrapper
from engine.quantization import Scheme, affine_parameters, fake_quantize, grid, keep_grid, scalars

finite = st.floats(-1e4, 1e4, width=32)
SCHEMES = st.builds(Scheme, st.integers(2, 16), symmetric=st.booleans(), signed=st.booleans())
#: More elements than go through PyTorch's own gradients.
LARGE = scalars.SMALL + 1


def activation(scheme=None) -> grid.Grid:
    wrapper = Wrapper(nn.Identity(), "layer", {})
    return keep_grid(wrapper, QuantType.OUTPUT, scheme or Scheme(8))


def weight_grid(weight: torch.Tensor, scheme: Scheme) -> grid.Grid:
    module = nn.Linear(1, 1, bias=False)
    module.weight = nn.Parameter(weight)
    return keep_grid(Wrapper(module, "layer", {}), QuantType.WEIGHT, scheme)


def on_tensors(monkeypatch) -> None:
    """From here on no number is read in Python, as it is on another device."""
    monkeypatch.setattr(grid, "can_share", lambda tensor: False)


def state(of: grid.Grid) -> dict[str, list[float]]:
    return {name: b.tolist() for name, b in of.wrapper._buffers.items() if b is not None}


@settings(deadline=None, max_examples=150)
@given(st.lists(finite, min_size=1, max_size=12), SCHEMES)
def test_python_and_tensors_place_the_same_grid_bit_by_bit(values, scheme):
    weight = torch.tensor(values)
    numbers, tensors = weight_grid(weight, scheme), weight_grid(weight, scheme)
    got = numbers.over_extremes(weight)
    with pytest.MonkeyPatch.context() as monkeypatch:
        on_tensors(monkeypatch)
        want = tensors.over_extremes(weight)
    assert state(numbers) == state(tensors)
    assert torch.equal(got, want)


@settings(deadline=None, max_examples=80)
@given(
    st.lists(st.lists(finite, min_size=1, max_size=6), min_size=1, max_size=4),
    st.lists(finite, min_size=1, max_size=12),
    SCHEMES,
)
def test_they_round_an_activation_to_the_same_values_with_the_same_gradient(seen, values, scheme):
    numbers, tensors = activation(scheme), activation(scheme)
    for batch in seen:
        numbers.follow(torch.tensor(batch), 0.5)
    low, high = numbers.wrapper.output_range
    tensors.set_range(low, high)
    results = []
    for of in (numbers, tensors):
        x = torch.tensor(values, requires_grad=True)
        y = of.over_range(x)
        y.backward(torch.arange(1.0, len(values) + 1))
        results.append((y.detach(), x.grad, x.detach()))
        patch = pytest.MonkeyPatch()
        on_tensors(patch)
    patch.undo()
    assert torch.equal(results[0][0], results[1][0])
    # Both stop where values clip; which side a tie at an end is on is not said.
    scale, zero = numbers.wrapper.output_scale, numbers.wrapper.output_zero_point
    position = results[0][2].double() / scale.double() + zero.double()
    clear = ((position - scheme.qmin + 0.5).abs() > 0.05) & (
        (position - scheme.qmax - 0.5).abs() > 0.05
    )
    inside = (position > scheme.qmin - 0.5) & (position < scheme.qmax + 0.5)
    upstream = torch.arange(1.0, len(values) + 1)
    for _, gradient, _ in results:
        assert torch.equal(gradient[clear], (upstream * inside)[clear])


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
@pytest.mark.parametrize("symmetric", [False, True])
def test_small_and_large_tensors_are_rounded_the_same(bits, symmetric):
    scheme = Scheme(bits, symmetric, symmetric)
    of = activation(scheme)
    of.set_range(torch.tensor(-1.0), torch.tensor(2.0))
    large = torch.randn(LARGE, requires_grad=True)
    small = large.detach()[:1000].clone().requires_grad_()
    of.over_range(large).sum().backward()
    of.over_range(small).sum().backward()
    assert torch.equal(of.over_range(large)[:1000], of.over_range(small))
    assert torch.equal(large.grad[:1000], small.grad)
    assert 0 < small.grad.count_nonzero() < 1000
    weight = large.detach()
    rounded = weight_grid(weight, scheme).over_extremes(weight.requires_grad_())
    want = fake_quantize(
        weight.detach(), *scheme.parameters(*weight.detach().aminmax()), scheme.qmin, scheme.qmax
    )
    assert torch.equal(rounded, want)


def test_an_end_exactly_between_two_integers_stays_within_them():
    # -1.5 and 1.5 in steps of 1: both ends are ties, and both round to an even integer.
    weight = torch.tensor([-1.5, 1.5])
    of = weight_grid(weight, Scheme(2))
    rounded = of.over_extremes(weight)
    assert of.wrapper.weight_scale == 1
    integers = rounded + of.wrapper.weight_zero_point
    assert integers.min() >= 0
    assert integers.max() <= 3


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_weight_that_is_not_finite_has_a_scale_of_one(bad, monkeypatch):
    weight = torch.tensor([bad, 0.4, 200.0])
    for _ in range(2):
        of = weight_grid(weight, Scheme(8))
        rounded = of.over_extremes(weight)
        assert of.wrapper.weight_scale == 1
        assert rounded[1:].tolist() == [0, 200]
        on_tensors(monkeypatch)


def test_unsigned_and_symmetric_is_for_what_is_never_negative(monkeypatch):
    for _ in range(2):
        of = activation(Scheme(2, symmetric=True, signed=False))
        of.set_range(torch.tensor(-9.0), torch.tensor(3.0))
        assert (of.wrapper.output_scale, of.wrapper.output_zero_point) == (1, 0)
        x = torch.tensor([-5.0, 0.6, 2.2, 9.0], requires_grad=True)
        y = of.over_range(x)
        y.sum().backward()
        assert y.tolist() == [0, 1, 2, 3]
        assert x.grad.tolist() == [0, 1, 1, 0]
        on_tensors(monkeypatch)


@pytest.mark.parametrize("value", [0.0, 3.0, -3.0])
def test_a_constant_activation_comes_back_as_it_was(value):
    of = activation()
    of.follow(torch.full((4,), value), 0.9)
    torch.testing.assert_close(of.over_range(torch.full((4,), value)), torch.full((4,), value))
    assert of.wrapper.output_scale == (pytest.approx(3 / 255) if value else 1)


def test_ranges_follow_alike_in_python_and_on_tensors(monkeypatch):
    batches = [torch.randn(20) * n for n in (1, 2, 0.1)]
    numbers, tensors = activation(), activation()
    for batch in batches:
        numbers.follow(batch, 0.9)
    on_tensors(monkeypatch)
    for batch in [torch.tensor([math.nan]), *batches[:1], torch.empty(0), *batches[1:]]:
        tensors.follow(batch, 0.9)
    # The formula in float64.
    low, high = (end.item() for end in batches[0].double().aminmax())
    for batch in batches[1:]:
        now = [end.item() for end in batch.double().aminmax()]
        low, high = low + 0.1 * (now[0] - low), high + 0.1 * (now[1] - high)
    for of in (numbers, tensors):
        assert of.wrapper.output_range.tolist() == pytest.approx([low, high], rel=1e-6)


def test_half_precision_and_float32_may_take_turns():
    # Half precision is rounded on tensors, float32 on numbers: on the same buffers.
    of = activation(Scheme(4))
    of.follow(torch.tensor([-1.0, 2.0]), 0.5)
    of.follow(torch.tensor([-4.0, 8.0]).bfloat16(), 0.5)
    scale, zero = affine_parameters(torch.tensor(-2.5), torch.tensor(5.0), 0, 15)
    values = torch.tensor([-2.0, 0.3, 1.7, 9.0])
    torch.testing.assert_close(of.over_range(values), fake_quantize(values, scale, zero, 0, 15))


def test_what_replaces_a_buffer_counts():
    of = activation(Scheme(4))
    of.follow(torch.tensor([0.0, 15.0]), 0.9)
    of.wrapper.set_attribute("output_scale", torch.tensor(2.0))
    assert of.over_range(torch.tensor([3.4, 99.0])).tolist() == [4, 30]
    assert of.wrapper.output_range.tolist() == [0, 15]


@pytest.mark.parametrize("through", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_has_numbers_of_its_own(through):
    of = activation(Scheme(4))
    of.follow(torch.tensor([0.0, 15.0]), 0.5)
    other = through(of.wrapper).grids["output"]
    assert other.wrapper is not of.wrapper
    assert other.wrapper.grids["output"] is other
    other.follow(torch.tensor([0.0, 45.0]), 0.5)
    assert other.wrapper.output_range.tolist() == [0, 30]
    assert of.wrapper.output_range.tolist() == [0, 15]
    assert of.over_range(torch.tensor([29.0])).item() == 15
    assert other.over_range(torch.tensor([29.0])).item() in (28, 30)


def test_rounding_changes_neither_the_tensor_nor_what_is_kept_for_backward():
    of = activation(Scheme(2))
    of.set_range(torch.tensor(-1.0), torch.tensor(2.0))
    x = torch.tensor([-5.0, 0.4, 1.6, 5.0], requires_grad=True)
    # exp keeps its result for backward: rounding in place beneath it would be an error.
    inner = x.exp()
    before = inner.detach().clone()
    of.over_range(inner).sum().backward()
    assert torch.equal(inner.detach(), before)
    assert torch.equal(x.grad, (before * (before < 2.5)).detach())


def test_the_gradient_can_be_differentiated_again():
    of = activation(Scheme(8))
    of.set_range(torch.tensor(-4.0), torch.tensor(4.0))
    x = torch.tensor([0.5, 9.0], requires_grad=True)
    (first,) = torch.autograd.grad(of.over_range(x**3).sum(), x, create_graph=True)
    first.sum().backward()
    assert x.grad.tolist() == [3.0, 0.0]


@pytest.mark.parametrize("size", [64, LARGE])
@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_a_batch_within_the_range_has_the_same_values_and_gradient_as_without_knowing_so(
    size, decay
):
    # decay 0: the range is the batch's own, nothing clips. 0.9: the range is wider or narrower.
    for factor in (0.5, 3.0):
        knows, does_not = activation(Scheme(4)), activation(Scheme(4))
        x = torch.randn(size)
        for of in (knows, does_not):
            of.follow(torch.randn(size, generator=torch.Generator().manual_seed(1)), decay)
        batch = (factor * x).requires_grad_()
        other = batch.detach().clone().requires_grad_()
        first = knows.over_range(batch, decay)
        does_not.follow(other, decay)
        second = does_not.over_range(other)
        assert torch.equal(first, second)
        first.sum().backward()
        second.sum().backward()
        assert torch.equal(batch.grad, other.grad)
        assert bool((batch.grad == 0).any()) == (decay > 0 and factor > 1)
