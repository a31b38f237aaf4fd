"""Every hand-written graph of the zoo gets smaller with the same outputs."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from torch import nn

from engine.speedup import SpeedupError, as_graph_module, speedup

_ZOO = Path(__file__).resolve().parents[2] / "docs" / "benchmarks" / "zoo"
sys.path.insert(0, str(_ZOO))
try:
    from compare import difference, outputs
    from graphs import GRAPHS, Graph
    from masking import mask_half, mask_rows, randomize
finally:
    sys.path.remove(str(_ZOO))


def made(graph: Graph) -> nn.Module:
    model = graph.model()
    randomize(model)
    return model


@pytest.mark.parametrize(
    "graph",
    [
        pytest.param(
            g, id=g.name,
            marks=[pytest.mark.xfail(reason=g.shortfall, raises=(AssertionError, SpeedupError))]
            if g.shortfall else [],
        )
        for g in GRAPHS
    ],
)  # fmt: skip
def test_a_fifth_of_the_parameters_goes_and_outputs_stay(graph: Graph) -> None:
    model, example = made(graph), graph.inputs(0)
    mask_half(model, *example)
    others = [graph.inputs(1), graph.inputs(2, batch=3)]
    expected = [outputs(model, given) for given in others]
    before = sum(p.numel() for p in model.parameters())
    speedup(model, *example)
    for given, wanted in zip(others, expected, strict=True):
        assert difference(outputs(model, given), wanted) <= 1e-10
    assert sum(p.numel() for p in model.parameters()) <= 0.8 * before


NUMBERS = ("InPlace", "GlobalResponseNorm", "ShapeInFormula")


@pytest.mark.parametrize("graph", [g for g in GRAPHS if g.name in NUMBERS], ids=lambda g: g.name)
def test_as_a_graph_module_numbers_in_the_code_do_not_matter(graph: Graph) -> None:
    model, example = made(graph), graph.inputs(0)
    mask_half(as_graph_module(model, *example), *example)
    others = [graph.inputs(1), graph.inputs(2, batch=3)]
    expected = [outputs(model, given) for given in others]
    before = sum(p.numel() for p in model.parameters())
    small = as_graph_module(model, *example)
    speedup(small, *example)
    for given, wanted in zip(others, expected, strict=True):
        assert difference(outputs(small, given), wanted) <= 1e-10
    assert sum(p.numel() for p in small.parameters()) <= 0.8 * before


@pytest.mark.parametrize("graph", GRAPHS, ids=lambda graph: graph.name)
def test_masks_of_single_layers_change_nothing_but_sizes(graph: Graph) -> None:
    """A pruner that knows no dependencies: what conflicts stays, and no output changes."""
    model, example, other = made(graph), graph.inputs(0), graph.inputs(1)
    mask_rows(model)
    expected = outputs(model, other)
    with suppress(SpeedupError):  # then nothing was changed
        speedup(model, *example)
    assert difference(outputs(model, other), expected) <= 1e-10


def test_a_graph_is_drawn_the_same_each_time() -> None:
    graph = GRAPHS[0]
    one, two = graph.model().state_dict(), graph.model().state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert torch.equal(graph.inputs(5)[0][0], graph.inputs(5)[0][0])
