"""Systems of filters that keep other weights each, against systems solved one by one."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from engine.algorithms import LevelPruner
from engine.pruning import Reconstruction, masked_systems
from engine.pruning.masked_systems import is_cheaper, solve_masked


def problem(filters, columns, samples, seed=0):
    generator = torch.Generator().manual_seed(seed)
    scale = torch.arange(1, columns + 1, dtype=torch.float64).pow(-1)
    mix = torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    x = torch.randn(samples, columns, generator=generator, dtype=torch.float64) * scale @ mix
    kept = torch.rand(filters, columns, generator=generator) < 0.5
    wanted = torch.randn(filters, samples, generator=generator, dtype=torch.float64) @ x
    return x.T @ x, wanted, kept


def one_by_one(gram, wanted, kept, held):
    found = torch.zeros_like(wanted)
    for row, own in enumerate(kept):
        system = gram[own][:, own] + held[row] * torch.eye(int(own.sum()), dtype=gram.dtype)
        found[row, own] = torch.linalg.solve(system, wanted[row, own])
    return found


@given(st.integers(1, 9), st.integers(1, 70), st.integers(1, 90), st.sampled_from([1.0, 1e-2]))
@settings(max_examples=40, deadline=None)
def test_they_are_the_systems_solved_one_by_one(filters, columns, samples, damping):
    gram, wanted, kept = problem(filters, columns, samples, seed=filters * columns)
    held = damping * gram.diagonal().mean().expand(filters)
    found, left = solve_masked(gram, wanted, kept, held)
    assert left == []
    expected = one_by_one(gram, wanted, kept, held)
    assert torch.equal(found != 0, (expected != 0) & kept)
    for one, other, row in zip(found, expected, range(filters), strict=True):
        system = gram + held[row] * torch.eye(columns, dtype=gram.dtype)
        assert (one - other) @ system @ (one - other) <= 1e-10 * (other @ system @ other)


def test_filters_without_a_column_or_anything_to_solve():
    gram, wanted, kept = problem(4, 20, 30)
    kept[1] = False
    wanted[2] = 0
    held = torch.full((4,), 0.1, dtype=gram.dtype)
    found, left = solve_masked(gram, wanted, kept, held)
    assert left == []
    assert not found[1].any()
    assert not found[2].any()
    assert torch.allclose(found, one_by_one(gram, wanted, kept, held), rtol=1e-4, atol=1e-8)
    nothing, left = solve_masked(torch.zeros_like(gram), torch.zeros_like(wanted), kept, held)
    assert (left, bool(nothing.any())) == ([], False)


def test_what_does_not_come_far_enough_is_said(monkeypatch):
    monkeypatch.setattr(masked_systems, "_STEPS", 2)
    gram, wanted, kept = problem(5, 60, 80)
    _, left = solve_masked(gram, wanted, kept, torch.full((5,), 1e-6, dtype=gram.dtype))
    assert left


@pytest.mark.parametrize("steps", [200, 2])
def test_a_reconstruction_is_the_same_either_way(steps, monkeypatch):
    """With two steps most filters are left over, and solved one by one."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 30), nn.Tanh(), nn.Conv1d(6, 4, 2, groups=2))
    model[1] = nn.Sequential(nn.Tanh(), nn.Unflatten(1, (6, 5)))
    batches = [torch.randn(20, 40) for _ in range(4)]
    results = []
    for together in (False, True):
        copied = copy.deepcopy(model).double()
        inputs = [batch.double() for batch in batches]
        reconstruction = Reconstruction(copied, inputs, damping=0.01)
        LevelPruner(copied, [{"op_types": ["Linear", "Conv1d"], "sparsity": 0.5}]).compress()
        monkeypatch.setattr(masked_systems, "_STEPS", steps)
        monkeypatch.setattr(
            "engine.pruning.least_squares.is_cheaper", lambda *_, together=together: together
        )
        report = reconstruction.apply()
        results.append((report, [parameter.detach() for parameter in copied.parameters()]))
    (report, weights), (other_report, others) = results
    for one, other in zip(weights, others, strict=True):
        assert torch.equal(one == 0, other == 0)
        assert torch.allclose(one, other, atol=1e-5)
    for one, other in zip(report, other_report, strict=True):
        assert one.after == pytest.approx(other.after, rel=1e-6)


def test_small_layers_and_filters_that_lack_the_same_are_decomposed():
    assert not is_cheaper([2048], 4096, 4096)
    assert not is_cheaper([200] * 400, 400, 400)
    assert is_cheaper([2048] * 4096, 4096, 4096)
