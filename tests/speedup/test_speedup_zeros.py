"""Sums of magnitudes find the zeros that a table of truth values finds."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.speedup import zeros
from engine.speedup.zeros import Reach, is_zero

_TINY = [0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45, 3e38, float("inf"), float("nan")]


@given(st.lists(st.lists(st.sampled_from(_TINY), min_size=3, max_size=3), min_size=1, max_size=5))
def test_a_slice_is_zero_if_each_element_is(values: list) -> None:
    tensor = torch.tensor(values)
    for dim in (0, 1, -1):
        expected = (tensor == 0).movedim(dim, 0).all(dim=1)
        assert torch.equal(is_zero(tensor, dim), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bool])
@pytest.mark.parametrize("shape", [(7, 5), (3, 4, 6)])
def test_what_is_reached_is_what_a_nonzero_weight_joins(
    dtype: torch.dtype, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zeros, "_CHUNK", 10)  # two rows at a time
    generator = torch.Generator().manual_seed(0)
    weights = (torch.rand(shape, generator=generator) < 0.2).to(dtype)
    reach = Reach(weights, *shape[-2:])
    inputs = torch.rand((*shape[:-2], shape[-1]), generator=generator) < 0.4
    outputs = torch.rand(shape[:-1], generator=generator) < 0.4
    table = weights != 0
    assert torch.equal(reach.outputs(inputs), (table & inputs[..., None, :]).any(-1))
    assert torch.equal(reach.inputs(outputs), (table & outputs[..., None]).any(-2))


def test_without_weights_everything_is_joined() -> None:
    reach = Reach(None, 3, 2)
    assert reach.outputs(torch.tensor([False, True])).tolist() == [True] * 3
    assert reach.inputs(torch.tensor([False] * 3)).tolist() == [False] * 2
