"""Rules for operators and modules of one's own, and sizes that code asks for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import engine
from engine import PluginError
from engine.algorithms import L1FilterPruner
from engine.speedup import speedup

X = torch.randn(3, 4, dtype=torch.float64)


@torch.library.custom_op("enginetest::swish", mutates_args=())
def swish(x: Tensor) -> Tensor:
    return x * x.sigmoid()


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(swish(self.a(x)))


def half(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        model.a.weight[:4] = 0
        model.a.bias[:4] = 0
    return model.double().eval()


def test_an_unknown_operator_keeps_what_it_touches_and_is_named() -> None:
    model = half(Own())
    expected = model(X)
    report = speedup(model, X)
    assert model.a.out_features == 8
    assert list(report.unknown) == ["enginetest::swish"]
    torch.testing.assert_close(model(X), expected)


@pytest.mark.parametrize("kind", ["pointwise", "spatial"])
def test_a_rule_of_ones_own_lets_channels_through(kind: str) -> None:
    model = half(Own())
    expected = model(X)
    speedup(model, X, rules={"enginetest::swish": kind})
    assert model.a.out_features == 4
    torch.testing.assert_close(model(X), expected, rtol=1e-10, atol=1e-12)


def test_a_plugin_of_the_stack_gives_rules() -> None:
    class Rules:
        @engine.hookimpl
        def speedup_rules(self) -> dict[str, Any]:
            return {"enginetest::swish": "pointwise"}

    model = Own().double().eval()
    pruner = L1FilterPruner(
        model, [{"op_names": ["a"], "sparsity": 0.5}], extensions=[Rules()], dummy_input=X
    )
    pruner.compress()
    pruner.apply_speedup()
    assert model.a.out_features == 4


class Softmax(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x - x.logsumexp(1, keepdim=True)) * (x != 0)


def test_a_module_can_be_said_to_go_on_seeing_zeros() -> None:
    model = nn.Sequential()
    model.a, model.mid, model.b = nn.Linear(4, 8), Softmax(), nn.Linear(8, 2)
    half(model)
    expected = model(X)
    speedup(model, X, rules={Softmax: "zeros"})
    assert model.a.out_features == model.b.in_features == 4
    torch.testing.assert_close(model(X), expected, rtol=1e-10, atol=1e-12)


def test_a_misspelt_rule_is_named() -> None:
    with pytest.raises(PluginError, match='did you mean "pointwise"'):
        speedup(half(Own()), X, rules={"enginetest::swish": "pointwis"})


class Sizes(nn.Module):
    """Two attributes with one value of which one is another thing, and sizes in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.depth, self.parts = 4, 4, [6, 10]
        self.a, self.b = nn.Linear(4, 16), nn.Linear(16, 16)
        self.c, self.d = nn.Linear(6, 2), nn.Linear(10, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).view(-1, self.heads, 16 // 4)
        y = torch.relu(y).flatten(1)
        for _ in range(self.depth - 2):
            y = torch.relu(y)
        c, d = self.b(y).split(self.parts, 1)
        return self.c(c) + self.d(d)


def test_the_attribute_that_was_asked_is_changed_and_no_other() -> None:
    torch.manual_seed(0)
    model = Sizes().double().eval()
    with torch.no_grad():
        for layer, rows in ((model.a, slice(0, 8)), (model.b, [0, 1, 6, 7, 8])):
            layer.weight[rows] = 0
            layer.bias[rows] = 0
    expected = model(X)
    speedup(model, X)
    assert (model.heads, model.depth, model.parts) == (2, 4, [4, 7])
    assert (model.a.out_features, model.b.out_features) == (8, 11)
    torch.testing.assert_close(model(X), expected, rtol=1e-10, atol=1e-12)


class Branches(nn.Module):
    """Which layer runs depends on the values."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.yes, self.no = nn.Linear(4, 8), nn.Linear(8, 2), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.a(x))
        return self.yes(y) if x[0, 0] > 0 else self.no(y)


def test_a_branch_that_the_example_did_not_take_is_made_smaller_too() -> None:
    torch.manual_seed(3)
    model = half(Branches())
    inputs = [torch.full((3, 4), value, dtype=torch.float64) for value in (1.0, -1.0)]
    expected = [model(x) for x in inputs]
    for seed in range(4):  # the check's values take either branch
        torch.manual_seed(seed)
        copy = half(Branches())
        copy.load_state_dict(model.state_dict())
        speedup(copy, inputs[0])
        assert copy.a.out_features in (4, 8)
        torch.testing.assert_close(copy(inputs[0]), expected[0])


class GroupedQueries(nn.Module):
    """Two heads of the queries read one head of the keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.shared = 4, 2
        self.q, self.kv, self.out = nn.Linear(12, 32), nn.Linear(12, 32), nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        n, length, _ = x.shape
        q = self.q(x).view(n, length, self.heads, -1).transpose(1, 2)
        k, v = self.kv(x).view(n, length, 2, self.shared, -1).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        return self.out(y.transpose(1, 2).flatten(2))


def test_shared_heads_go_with_those_that_read_them() -> None:
    torch.manual_seed(0)
    model = GroupedQueries().double().eval()
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    with torch.no_grad():
        for layer, rows in ((model.q, range(16)), (model.kv, [*range(8), *range(16, 24)])):
            layer.weight[list(rows)] = 0
            layer.bias[list(rows)] = 0
    expected = model(x)
    speedup(model, x)
    assert (model.heads, model.shared) == (2, 1)
    assert (model.q.out_features, model.kv.out_features, model.out.in_features) == (16, 16, 16)
    torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-12)


class Auxiliary(nn.Module):
    """A second head that only runs in training."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head, self.extra = nn.Linear(4, 8), nn.Linear(8, 2), nn.Linear(8, 3)
        self.norm = nn.BatchNorm1d(8)

    def forward(self, x: Tensor) -> Any:
        y = torch.relu(self.norm(self.a(x)))
        return (self.head(y), self.extra(y)) if self.training else self.head(y)


def test_heads_that_only_run_in_training_become_smaller_too() -> None:
    model = half(Auxiliary())
    with torch.no_grad():
        model.norm.weight[:4] = 0
        model.norm.bias[:4] = 0
    before = model.norm.running_mean.clone()
    expected = model(X)
    speedup(model, X)
    torch.testing.assert_close(model(X), expected, rtol=1e-10, atol=1e-12)
    assert torch.equal(model.norm.running_mean, before[4:])
    assert not model.training
    assert model.extra.in_features == 4
    model.train()
    sum(t.sum() for t in model(X)).backward()
