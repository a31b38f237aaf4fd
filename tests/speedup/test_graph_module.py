"""Sizes that are literals in a model's code follow the channels in a graph module of it."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import engine
from engine.algorithms import L1FilterPruner
from engine.errors import CheckpointError
from engine.extensions import DependencyAware, GlobalRanking
from engine.speedup import SpeedupError, as_graph_module, speedup


class Literal(nn.Module):
    """Slices, heads and groups of literal sizes, and the batch by ``len``."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 24, 3, bias=False)
        self.depthwise = nn.Conv2d(24, 24, 3, padding=1, groups=24, bias=False)
        self.q, self.o = nn.Linear(24, 32), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.depthwise(self.a(x)))
        y = torch.cat([y[:, :12] * 2, y[:, 12:].tanh()], 1)
        t = y.flatten(2).transpose(1, 2)
        q = self.q(t).view(len(t), -1, 4, 8).transpose(1, 2)
        w = (q @ q.mT).softmax(-1) @ q
        return self.o(w.transpose(1, 2).reshape(len(t), -1, 32)).mean(1)


X = torch.randn(2, 3, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
OTHER = torch.randn(3, 3, 7, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
ENTRIES: list[dict[str, Any]] = [
    {"op_types": ["Conv2d", "Linear"], "sparsity": 0.5},
    {"op_names": ["o"], "exclude": True},
]


def literal() -> Literal:
    torch.manual_seed(0)
    return Literal().double().eval()


def equal(ours: Tensor, theirs: Tensor) -> bool:
    return bool((ours - theirs).abs().max() <= 1e-12 * theirs.abs().max())


def pruned(model: nn.Module, *extensions: Any) -> tuple[Any, Tensor]:
    pruner = L1FilterPruner(model, ENTRIES, extensions=list(extensions), dummy_input=X)
    pruner.compress()
    with torch.no_grad():
        return pruner, model(OTHER)


def test_literals_are_replaced_and_outputs_stay() -> None:
    model = literal()
    pruner, expected = pruned(model, DependencyAware(graph_module=True))
    pruner.optimizer = torch.optim.SGD(model.parameters(), 0.1)
    small = pruner.apply_speedup(graph_module=True)
    assert isinstance(small, fx.GraphModule)
    assert equal(small(OTHER), expected)
    shapes = {name: tuple(p.shape) for name, p in small.named_parameters() if "weight" in name}
    assert shapes == {
        "a.weight": (12, 3, 3, 3),
        "depthwise.weight": (12, 1, 3, 3),
        "q.weight": (16, 12),
        "o.weight": (4, 16),
    }
    assert isinstance(small.a, nn.Conv2d)
    small(OTHER).sum().backward()
    trained = pruner.optimizer.param_groups[0]["params"]
    assert {id(p) for p in trained} == {id(p) for p in small.parameters()}
    assert all(p.grad is not None for p in trained)


def test_without_it_they_stay() -> None:
    model = literal()
    pruner, expected = pruned(model, DependencyAware())
    small = pruner.apply_speedup()
    assert small is model
    assert equal(small(OTHER), expected)
    assert model.q.weight.shape[0] == 32


def test_filters_are_ranked_over_the_model_in_its_graph() -> None:
    model = literal()
    before = sum(p.numel() for p in model.parameters())
    entries = [{"op_types": ["Conv2d", "Linear"], "sparsity": 0.4}, ENTRIES[1]]
    ranking = GlobalRanking("parameters", graph_module=True)
    pruner = L1FilterPruner(model, entries, extensions=[ranking], dummy_input=X)
    pruner.compress()
    expected = model(OTHER)
    small = pruner.apply_speedup(graph_module=True)
    assert equal(small(OTHER), expected)
    assert sum(p.numel() for p in small.parameters()) <= 0.65 * before


def test_it_is_saved_copied_and_loaded(tmp_path: Path) -> None:
    pruner, expected = pruned(literal(), DependencyAware(graph_module=True))
    small = pruner.apply_speedup(graph_module=True)
    engine.save_compressed(small, tmp_path / "small.pt")
    fresh = engine.load_compressed(as_graph_module(literal(), X), tmp_path / "small.pt")
    assert equal(fresh(OTHER), expected)
    assert equal(copy.deepcopy(small)(OTHER), expected)
    plain = literal()
    with pytest.raises(CheckpointError) as refused:
        engine.load_compressed(plain, tmp_path / "small.pt")
    assert str(refused.value) == (
        '"the model" is a Literal, the saved one is a LiteralGraph\n'
        "  load it into engine.speedup.as_graph_module(model, dummy_input)"
    )
    assert plain.a.weight.shape[0] == 24


def test_it_is_pickled() -> None:
    pruner, expected = pruned(literal(), DependencyAware(graph_module=True))
    stream = io.BytesIO()
    torch.save(pruner.apply_speedup(graph_module=True), stream)
    stream.seek(0)
    assert equal(torch.load(stream, weights_only=False)(OTHER), expected)


def test_the_graph_alone_is_the_model() -> None:
    model = literal()
    graph = as_graph_module(model, X)
    assert equal(graph(OTHER), model(OTHER))
    assert dict(graph.named_parameters()).keys() == dict(model.named_parameters()).keys()
    assert graph.a is model.a
    graph.train()
    graph.eval()


def test_a_model_that_cannot_be_written_down_is_refused() -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) if float(x.sum()) > 0 else -self.a(x)

    pruner = L1FilterPruner(Reads(), [{"op_types": ["Linear"], "sparsity": 0.5}])
    pruner.compress()
    with pytest.raises(SpeedupError, match="cannot be written down as a graph") as refused:
        pruner.apply_speedup(torch.randn(2, 4), graph_module=True)
    assert "without graph_module=True" in str(refused.value)


class Gated(nn.Module):
    """Slices of an attribute's size are no literals: no graph is needed."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.half, self.up, self.down = width, nn.Linear(5, 2 * width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(x)
        return self.down(y[..., : self.half] * torch.sigmoid(y[..., self.half :]))


@torch.no_grad()
def test_slices_of_an_attributes_size_follow() -> None:
    torch.manual_seed(0)
    model = Gated().double().eval()
    for row in (1, 4, 7, 10):
        model.up.weight[row] = 0
        model.up.bias[row] = 0
    x = torch.randn(4, 5).double()
    expected = model(x)
    speedup(model, x)
    assert equal(model(x), expected)
    assert model.up.weight.shape == (8, 5)
    assert model.half == 4


class Written(nn.Module):
    """Some channels are changed in place, and all through a view of another shape."""

    def __init__(self, start: int, stop: int) -> None:
        super().__init__()
        self.start, self.stop = start, stop
        self.a, self.b = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        y[:, self.start : self.stop] *= 3
        y.flatten(1).tanh_()
        y[:, :2].add_(y[:, 2:3])
        return self.b(y)


@torch.no_grad()
@pytest.mark.parametrize(("start", "stop"), [(0, 4), (3, 9), (6, 12)])
def test_channels_that_are_written_to_go(start: int, stop: int) -> None:
    torch.manual_seed(0)
    model = Written(start, stop).double().eval()
    gone = [4, 5, 8, 11]
    model.a.weight[gone] = 0
    model.a.bias[gone] = 0
    x = torch.randn(2, 3, 5, 5).double()
    other = torch.randn(3, 3, 4, 6).double()
    expected = model(other)
    graph = as_graph_module(model, x)
    speedup(graph, x)
    assert equal(graph(other), expected)
    assert model.a.weight.shape[0] == 8


class Means(nn.Module):
    """Features by their mean, and by a sum that is divided by their number."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 10), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.a(x))
        y = y / (1 + y.mean(-1, keepdim=True) + y.sum(-1, keepdim=True) / y.shape[-1])
        return self.b(y) + y.mean(1, keepdim=True)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_means_go_on_dividing_by_the_number_that_there_was(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = Means().to(dtype).eval()
    for row in (1, 4, 7):
        model.a.weight[row] = 0
        model.a.bias[row] = 0
    x = torch.randn(4, 6, dtype=dtype)
    expected = model(x)
    graph = as_graph_module(model, torch.randn(2, 6, dtype=dtype))
    speedup(graph, torch.randn(2, 6, dtype=dtype))
    assert model.a.weight.shape == (7, 6)
    torch.testing.assert_close(graph(x), expected, rtol=1e-6, atol=1e-6)


class Named(nn.Module):
    """Inputs by name, in another order than the forward has them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, *, scale: Tensor, twice: bool = False) -> Tensor:
        y = self.a(x) * scale
        y = torch.cat([y[:, :4].relu(), y[:, 4:].tanh()], 1)
        return self.b(y) * (2 if twice else 1)


@torch.no_grad()
def test_inputs_by_name() -> None:
    torch.manual_seed(0)
    model = Named().double().eval()
    for row in (1, 5, 6):
        model.a.weight[row] = 0
        model.a.bias[row] = 0

    def inputs(batch: int) -> dict[str, Any]:
        numbers = (torch.randn(batch, n, dtype=torch.float64) for n in (8, 6))
        return {"twice": True, "scale": next(numbers), "x": next(numbers)}

    other = inputs(5)
    expected = model(**other)
    graph = as_graph_module(model, (), inputs(2))
    speedup(graph, (), inputs(2))
    assert equal(graph(**other), expected)
