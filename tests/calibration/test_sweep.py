"""The sweep against the textbook: Optimal Brain Surgeon, one weight at a time, in float64."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from engine import EngineError
from engine.calibration import n_m_mask, pattern_of, squared_error, sweep
from engine.calibration.sweep import InverseFactor
from engine.pruning import smallest_in_rows


def problem(rows, columns, seed=0, samples=200):
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    x = torch.randn(samples, columns, generator=generator, dtype=torch.float64) @ mixed
    weight = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    return weight, x.T @ x


def surgeon(weight, hessian, put):
    """Each column of each row in order; the inverse of what is left is computed anew each time."""
    weight = weight.clone()
    for row in range(len(weight)):
        for j in range(weight.shape[1]):
            inverse = torch.linalg.inv(hessian[j:, j:])
            old = weight[row, j].clone()
            new = put(row, j, old, inverse[0, 0])
            weight[row, j:] -= (old - new) / inverse[0, 0] * inverse[0]
            weight[row, j] = new
    return weight


@given(st.integers(1, 4), st.integers(1, 24), st.integers(0, 5))
@settings(max_examples=25, deadline=None)
def test_rounding_is_optimal_brain_surgery(rows, columns, seed):
    weight, gram = problem(rows, columns, seed)
    damped = gram + 0.01 * gram.diagonal().mean() * torch.eye(columns, dtype=gram.dtype)
    expected = surgeon(weight, damped, lambda row, j, w, _: (w * 2).round() / 2)
    found = sweep(weight, gram, lambda *_: lambda column, value: (value * 2).round() / 2)
    assert torch.allclose(found, expected, atol=1e-6)
    assert torch.equal(found, (found * 2).round() / 2)


def test_an_order_is_that_of_a_permuted_problem():
    weight, gram = problem(3, 12)
    order = torch.randperm(12)
    grid = torch.linspace(0.3, 0.9, 12, dtype=torch.float64)

    def rounded(j, w):
        return (w / grid[j]).round() * grid[j]

    found = sweep(weight, gram, lambda *_: rounded, order=order)
    moved = sweep(
        weight[:, order], gram[order][:, order], lambda *_: lambda j, w: rounded(order[j], w)
    )
    assert torch.equal(found[:, order], moved)
    assert torch.allclose(found / grid, (found / grid).round())


@pytest.mark.parametrize("columns", [100, 128, 300])
@pytest.mark.parametrize("step", [4, 32, 128])
def test_an_error_lies_between_a_refit_of_the_same_mask_and_zeroing_it(columns, step):
    weight, gram = problem(6, columns, samples=4 * columns)

    def choose(start, values, diagonal):
        mask = smallest_in_rows(values.square() / diagonal.square(), values.numel() // 2)
        return lambda column, value: value * mask[:, column - start]

    found = sweep(weight, gram, choose, damping=1e-6, step=step)
    refit = torch.zeros_like(weight)
    for row, kept in enumerate(found != 0):
        wanted = gram[kept] @ weight[row]
        refit[row, kept] = torch.linalg.solve(gram[kept][:, kept], wanted)
    best, ours, plain = (
        squared_error(each - weight, gram) for each in (refit, found, weight * (found != 0))
    )
    assert best <= ours * (1 + 1e-9)
    assert ours < plain
    assert ((found == 0).sum() - found.numel() // 2).abs() <= 3 * 6


@given(st.integers(1, 40), st.integers(0, 9))
@settings(max_examples=30, deadline=None)
def test_the_factor_is_that_of_the_damped_inverse(columns, seed):
    _, gram = problem(1, columns, seed)
    factor = InverseFactor(gram, 0.1).rows(0, len(gram))
    damped = gram + 0.1 * gram.diagonal().mean() * torch.eye(columns, dtype=gram.dtype)
    eye = torch.eye(columns, dtype=gram.dtype)
    assert torch.allclose(factor.T @ factor @ damped, eye, atol=1e-6)
    assert torch.equal(factor, factor.triu())
    upper = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
    assert torch.allclose(factor, upper, rtol=1e-5, atol=1e-9)


def test_a_factor_of_several_blocks_and_another_order():
    _, gram = problem(1, 600, samples=700)
    order = torch.randperm(600)
    for own, other in ((gram, None), (gram[order][:, order], order)):
        factor = InverseFactor(gram, 0.01, other)
        damped = own + 0.01 * own.diagonal().mean() * torch.eye(600, dtype=own.dtype)
        upper = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
        for start, end in ((0, 600), (0, 128), (128, 256), (590, 600)):
            rows = factor.rows(start, end)
            assert torch.allclose(rows, upper[start:end, start:], rtol=1e-6, atol=1e-10)


def test_dead_columns_and_no_inputs_at_all():
    weight, gram = problem(4, 16)
    gram[3], gram[:, 3] = 0, 0
    found = sweep(weight, gram, lambda *_: lambda j, w: w.round())
    assert torch.equal(found[:, 3], weight[:, 3].round())
    none = sweep(weight, torch.zeros_like(gram), lambda *_: lambda j, w: w.round())
    assert torch.equal(none, weight.round())


def test_matrices_that_are_none():
    weight, gram = problem(2, 4)
    with pytest.raises(EngineError, match="NaN or infinity"):
        sweep(weight, gram * torch.nan, lambda *_: lambda j, w: w)
    negative = torch.full_like(gram, -99).fill_diagonal_(1)
    with pytest.raises(EngineError, match="not positive definite"):
        sweep(weight, negative, lambda *_: lambda j, w: w)


@given(st.integers(1, 5), st.integers(1, 30), st.integers(1, 8), st.data())
@settings(max_examples=60, deadline=None)
def test_n_of_m(rows, columns, of, data):
    removed = data.draw(st.integers(0, of))
    scores = torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows * columns))
    mask = n_m_mask(scores, removed, of)
    for row, kept in zip(scores, mask, strict=True):
        for start in range(0, columns, of):
            piece, own = row[start : start + of], kept[start : start + of]
            gone = removed if len(piece) == of else len(piece) * removed // of
            assert int((~own).sum()) == gone
            if 0 < gone < len(piece):
                assert piece[~own].max() <= piece[own].min()


def test_patterns_are_named_by_what_stays():
    assert pattern_of("2:4") == (2, 4)
    assert pattern_of("1:4") == (3, 4)
    assert pattern_of(None) is None


def test_rows_are_put_in_order_a_few_at_a_time(monkeypatch):
    scores = torch.randint(0, 9, (7, 10)).float()
    whole = [smallest_in_rows(scores, count) for count in range(71)]
    monkeypatch.setattr("engine.pruning.masks._AT_ONCE", 25)
    assert all(torch.equal(smallest_in_rows(scores, n), mask) for n, mask in enumerate(whole))


@given(st.integers(1, 6), st.integers(1, 12), st.data())
@settings(max_examples=60, deadline=None)
def test_rows_lose_as_many_or_one_more(rows, columns, data):
    count = data.draw(st.integers(0, rows * columns))
    scores = torch.randint(0, 5, (rows, columns)).float()
    mask = smallest_in_rows(scores, count)
    gone = (~mask).sum(1)
    assert int(gone.sum()) == count
    assert int(gone.max() - gone.min()) <= 1
    for row, kept in zip(scores, mask, strict=True):
        if kept.any() and not kept.all():
            assert row[~kept].max() <= row[kept].min()
