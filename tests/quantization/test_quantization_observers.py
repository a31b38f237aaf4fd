"""Observers against what they are meant to be, computed another way."""

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine.quantization import Scheme
from engine.quantization.observers import (
    MSE,
    OBSERVERS,
    Entropy,
    Histogram,
    MinMax,
    MovingAverage,
    Observer,
    Percentile,
)
from engine.quantization.observers.histogram import BINS

SCHEME = Scheme(8)
BATCHES = st.lists(
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=9), min_size=1, max_size=5
)


@pytest.fixture(params=sorted(OBSERVERS))
def observer(request) -> Observer:
    return OBSERVERS[request.param]()


def limits(observer: Observer, scheme: Scheme = SCHEME) -> list[float]:
    return [end.item() for end in observer.limits(scheme)]


def shown(observer: Observer, *batches: torch.Tensor) -> Observer:
    for batch in batches:
        observer.observe(batch)
    return observer


# -- what all of them do -----------------------------------------------------------------------


def test_before_anything_was_seen_there_is_no_range(observer):
    assert not observer.seen
    assert all(math.isnan(end) for end in limits(observer))


def test_what_is_not_finite_or_empty_changes_nothing(observer):
    shown(observer, torch.tensor([-1.0, 0.5, 2.0]))
    before = {name: buffer.clone() for name, buffer in observer.named_buffers()}
    for bad in ([math.nan, 9.0], [math.inf], [-math.inf, 1.0], []):
        observer.observe(torch.tensor(bad))
    for name, buffer in observer.named_buffers():
        assert torch.equal(buffer, before[name]), name


@pytest.mark.parametrize("value", [0.0, 2.5, -3.0, 1e-30])
def test_a_constant_is_its_own_range(observer, value):
    shown(observer, torch.full((7,), value), torch.full((3,), value))
    low, high = limits(observer)
    assert min(low, 0) == pytest.approx(min(value, 0))
    assert max(high, 0) == pytest.approx(max(value, 0))


def test_its_state_goes_through_a_state_dict(observer):
    shown(observer, torch.randn(200), 3 * torch.randn(200))
    other = type(observer)()
    other.load_state_dict(observer.state_dict())
    assert limits(other) == limits(observer)
    more = torch.randn(100) * 9
    assert limits(shown(other, more)) == limits(shown(observer, more))


def test_the_tensor_is_not_changed_and_no_gradient_kept(observer):
    x = torch.randn(50, requires_grad=True)
    before = x.detach().clone()
    observer.observe(x)
    assert torch.equal(x.detach(), before)
    assert not any(end.requires_grad for end in observer.limits(SCHEME))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_floating_dtype_is_observed_in_float32(observer, dtype):
    x = torch.randn(500).to(dtype)
    low, high = shown(observer, x).limits(SCHEME)
    assert low.dtype == high.dtype == torch.float32
    assert limits(observer) == limits(shown(type(observer)(), x.float()))


def test_the_limits_lie_within_what_was_seen(observer):
    batches = torch.randn(4, 300)
    low, high = limits(shown(observer, *batches))
    assert batches.min() - 1e-6 <= low <= high <= batches.max() + 1e-6


# -- each by itself ----------------------------------------------------------------------------


@settings(deadline=None, max_examples=50)
@given(BATCHES)
def test_min_max_is_the_extremes_of_everything(batches):
    everything = [value for batch in batches for value in batch]
    observer = shown(MinMax(), *map(torch.tensor, batches))
    assert limits(observer) == [min(everything), max(everything)]


@settings(deadline=None, max_examples=50)
@given(BATCHES, st.sampled_from([0.0, 0.5, 0.99]))
def test_moving_average_is_its_formula(batches, decay):
    low, high = min(batches[0]), max(batches[0])
    for batch in batches[1:]:
        low = decay * low + (1 - decay) * min(batch)
        high = decay * high + (1 - decay) * max(batch)
    observer = shown(MovingAverage(decay), *map(torch.tensor, batches))
    assert limits(observer) == pytest.approx([low, high], rel=1e-4, abs=0.2)


@pytest.mark.parametrize("percentile", [60.0, 90.0, 99.0, 99.9])
@pytest.mark.parametrize("relu", [False, True])
def test_percentile_is_numpys_to_a_bin(percentile, relu):
    values = torch.randn(4987)  # no percentile lies exactly between two values
    values = values.relu() if relu else values
    observer = shown(Percentile(percentile), *values.split(1000))
    want = np.percentile(values.numpy(), [100 - percentile, percentile], method="inverted_cdf")
    bin_width = 2.0 ** observer.exponent.item() / BINS
    assert limits(observer) == pytest.approx(list(want), abs=2 * bin_width)


def test_the_hundredth_percentile_is_the_extremes():
    values = torch.randn(5000)
    assert limits(shown(Percentile(100), values)) == [values.min().item(), values.max().item()]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Percentile(50), "percentile is 50; needed: 50 < percentile <= 100"),
        (lambda: Percentile(101), "percentile is 101"),
        (lambda: MovingAverage(1.0), "decay is 1.0; needed: 0 <= decay < 1"),
    ],
)
def test_options_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@settings(deadline=None, max_examples=40)
@given(BATCHES)
@example([[8192.0], [-1.401298464324817e-45]])
def test_a_histogram_does_not_depend_on_the_order_of_batches(batches):
    tensors = [torch.tensor(batch) for batch in batches]
    forward, backward = shown(Histogram(), *tensors), shown(Histogram(), *tensors[::-1])
    for name, buffer in forward.named_buffers():
        assert torch.equal(buffer, backward.get_buffer(name)), name
    count = sum(tensor.numel() for tensor in tensors)
    assert forward.counts.sum() + forward.zeros == count
    assert forward.zeros == sum(int((tensor == 0).sum()) for tensor in tensors)
    assert (forward.counts >= 0).all()


def test_bins_hold_what_lies_in_them():
    values = torch.randn(2000) * 3
    observer = shown(Histogram(), values[:10], values[10:])
    middles, counts = observer.bins()
    width = 2.0 ** observer.exponent.item() / BINS
    for middle, count in list(zip(middles, counts, strict=True))[::50]:
        inside = (values.double() >= middle - width / 2) & (values.double() < middle + width / 2)
        assert inside.sum() == count


def mean_squared_error(values: np.ndarray, low: float, high: float, scheme: Scheme) -> float:
    """Of rounding ``values``, in float64."""
    low, high = min(low, 0.0), max(high, 0.0)
    if scheme.symmetric:
        scale, zero = max(-low, high) / scheme.qmax, 0
    else:
        scale = (high - low) / (scheme.qmax - scheme.qmin)
        zero = np.clip(np.round(scheme.qmin - low / scale), scheme.qmin, scheme.qmax)
    q = np.clip(np.round(values / scale) + zero, scheme.qmin, scheme.qmax)
    return float((((q - zero) * scale - values) ** 2).mean())


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("shape", ["normal", "relu", "gelu", "outlier"])
def test_mse_is_as_good_as_a_grid_search_on_the_values_themselves(bits, symmetric, shape):
    x = torch.randn(3000)
    x = {
        "normal": lambda: x,
        "relu": lambda: x.relu(),
        "gelu": lambda: torch.nn.functional.gelu(3 * x),
        "outlier": lambda: torch.cat((x, torch.tensor([40.0]))),
    }[shape]()
    scheme = Scheme(bits, symmetric, symmetric)
    values = x.double().numpy()
    got = mean_squared_error(values, *limits(shown(MSE(), x), scheme), scheme)
    fractions = np.linspace(0.02, 1, 50)
    low, high = values.min(), values.max()
    joint = [mean_squared_error(values, low * f, high * f, scheme) for f in fractions]
    assert got <= 1.02 * min(joint) + 1e-9
    assert got <= mean_squared_error(values, low, high, scheme) * 1.0001


def divergence(values: np.ndarray, end: float, levels: int, bins: int = 2048) -> float:
    """KL divergence of values clipped to [0, end] from ``levels`` even steps, slowly."""
    counts, _ = np.histogram(values, bins, (0, end))
    p = counts.astype(float)
    p[-1] += (values > end).sum()
    q = np.zeros(bins)
    step = end / (levels - 1)
    level = np.round((np.arange(bins) + 0.5) * end / bins / step)
    for each in np.unique(level):
        of_level = (level == each) & (p > 0)
        inner = counts[(level == each)].sum()
        if of_level.any():
            q[of_level] = inner / of_level.sum()
    used = (p > 0) & (q > 0)
    p, q = p / p.sum(), q / q.sum()
    return float((p[used] * np.log(p[used] / q[used])).sum())


def test_entropy_leaves_a_lone_outlier_out_as_a_slow_search_does():
    x = torch.cat((torch.rand(4000) ** 3 + 0.01, torch.tensor([30.0])))
    scheme = Scheme(4)
    low, high = limits(shown(Entropy(), x), scheme)
    assert low >= 0
    assert high < 3
    values = x.double().numpy()
    ends = np.linspace(0.3, 30, 100)
    best = min(divergence(values, end, 16) for end in ends)
    assert divergence(values, high, 16) <= 1.5 * best + 0.02


def test_entropy_keeps_the_whole_range_of_evenly_spread_values():
    x = torch.linspace(0.001, 4, 8192)
    low, high = limits(shown(Entropy(), x), Scheme(8))
    assert low == pytest.approx(0, abs=0.01)
    assert high > 3.5


def test_an_outlier_moves_min_max_and_hardly_the_others():
    torch.manual_seed(0)
    x = torch.cat((torch.randn(20000), torch.tensor([500.0])))
    high = {name: limits(shown(cls(), x), Scheme(4))[1] for name, cls in OBSERVERS.items()}
    assert high["min_max"] == high["moving_average"] == 500
    assert high["percentile"] < 5
    assert high["entropy"] < 60
