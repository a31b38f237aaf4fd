"""Masks remove exactly as much as asked."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.pruning import prune_count, smallest_removed

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
percent = st.integers(0, 100)


@given(total=st.integers(0, 3_000_000), hundredths=percent)
def test_prune_count_is_the_floor_of_the_exact_product(total, hundredths):
    expected = int(Fraction(hundredths, 100) * total)
    assert prune_count(total, hundredths / 100) == expected


def test_prune_count_is_29_of_100_at_0_29():
    assert int(100 * 0.29) == 28
    assert prune_count(100, 0.29) == 29


@given(total=st.integers(0, 10_000), sparsity=st.floats(0, 1))
def test_prune_count_is_within_one_of_the_product(total, sparsity):
    assert abs(prune_count(total, sparsity) - total * sparsity) < 1


@settings(deadline=None)
@given(
    scores=st.lists(st.integers(-3, 3), min_size=1, max_size=40),
    hundredths=percent,
    dtype=st.sampled_from(DTYPES),
)
def test_exactly_count_go_and_ties_fall_in_order_of_index(scores, hundredths, dtype):
    count = len(scores) * hundredths // 100
    kept = smallest_removed(torch.tensor(scores, dtype=dtype), count)
    expected = sorted(range(len(scores)), key=lambda i: (scores[i], i))[:count]
    assert (~kept).nonzero().flatten().tolist() == sorted(expected)


@settings(deadline=None)
@given(
    scores=st.lists(st.floats(allow_nan=True, allow_infinity=True, width=32), min_size=1),
    hundredths=percent,
)
def test_nan_ranks_above_everything(scores, hundredths):
    count = len(scores) * hundredths // 100
    kept = smallest_removed(torch.tensor(scores), count)
    order = sorted(range(len(scores)), key=lambda i: (scores[i] != scores[i], scores[i], i))
    numbers = sum(score == score for score in scores)
    assert int((~kept).sum()) == count
    if count <= numbers:
        assert (~kept).nonzero().flatten().tolist() == sorted(order[:count])
    else:
        assert bool((~kept)[list(order[:numbers])].all())


@pytest.mark.parametrize("shape", [(), (7,), (3, 5), (2, 3, 2, 2)])
def test_the_mask_is_bool_of_the_same_shape(shape):
    scores = torch.randn(shape)
    kept = smallest_removed(scores, scores.numel() // 2)
    assert kept.dtype == torch.bool
    assert kept.shape == scores.shape


def test_ties_in_a_tensor_of_another_memory_format():
    scores = torch.ones(2, 3, 4, 4).to(memory_format=torch.channels_last)
    kept = smallest_removed(scores, 40)
    assert kept.flatten().tolist() == [False] * 40 + [True] * 56


def test_the_scores_are_not_changed_and_carry_no_gradient():
    scores = torch.randn(10, requires_grad=True)
    before = scores.detach().clone()
    kept = smallest_removed(scores, 4)
    assert torch.equal(scores, before)
    assert not kept.requires_grad


@pytest.mark.parametrize("count", [-1, 5])
def test_a_count_out_of_range_is_refused(count):
    with pytest.raises(ValueError, match=r"count must be in \[0, 4\], got"):
        smallest_removed(torch.zeros(4), count)
