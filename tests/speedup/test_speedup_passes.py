"""How often a model runs while it is made smaller, and what of it is computed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from engine.algorithms import L1FilterPruner
from engine.speedup import channel_blocks
from engine.speedup.groups import plan


class Attention(nn.Module):
    """Multi-head attention behind one projection, with a norm that looks into its heads."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.heads = 4
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm = nn.Sequential(nn.LayerNorm(width // 4), nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        # Three first: what is split off first is taken apart, so that another part must carry on.
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, -1).unbind(2)
        q, k, v = (self.norm(t.transpose(1, 2)) for t in (q, k, v))
        return x + self.out(((q @ k.mT).softmax(-1) @ v).transpose(1, 2).reshape(b, n, c))


def runs(model: nn.Module) -> list[None]:
    """Return a list that grows with each run."""
    found: list[None] = []
    model.register_forward_pre_hook(lambda *_: found.append(None))
    return found


def test_from_dense_to_smaller_a_network_runs_four_times() -> None:
    """Once for the groups; masked, to compare and to trace; and smaller."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(),
        nn.Linear(8 * 16, 4),
    )  # fmt: skip
    found = runs(model)
    entries = [{"op_types": ["Conv2d"], "sparsity": 0.5}]
    x = torch.randn(2, 3, 8, 8)
    pruner = L1FilterPruner(model, entries, dependency_aware=True, dummy_input=x)
    pruner.compress()
    pruner.apply_speedup()
    assert model[0].out_channels == 4
    assert len(found) == 4


def test_splits_of_all_layers_are_settled_together() -> None:
    """A norm inside changed the numbers of later calls, and each layer cost a pass of its own."""
    torch.manual_seed(0)
    counts = []
    for layers in (1, 6):
        model = nn.Sequential(*(Attention() for _ in range(layers))).eval()
        found = runs(model)
        plan(model, torch.randn(2, 5, 24))
        counts.append(len(found))
    assert counts[0] == counts[1] <= 3


class Branching(nn.Module):
    """What it does depends on values in a way of its own."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.a, self.c = nn.Linear(6, 8), nn.Linear(8, 4)
        # Its hidden features are a group only if it runs.
        self.b = nn.Sequential(nn.Linear(8, 10), nn.ReLU(), nn.Linear(10, 8))
        nn.init.ones_(self.a.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        if self.how == "branch":
            return self.c(self.b(x) + x if x.sum() > 0 else x)
        if self.how == "caught":
            try:
                positive = bool(x.sum() > 0)
            except Exception:
                positive = False
            return self.c(self.b(x) + x if positive else x)
        if self.how == "list":
            return self.c(self.b(x) + x if sum(x.detach().flatten().tolist()) > 0 else x)
        if self.how == "index":
            return self.c(x[x.argmax(0)] + self.b(x)[:1])
        if self.how == "chosen":
            return self.c(x[x.sum(1) > 0] + self.b(x)[:1])
        if self.how == "written":
            held = torch.zeros_like(x)
            held[:, ::2] = x[:, ::2]
            return self.c(self.b(x) + x if held.sum() > 0 else x)
        return self.c(torch.where(x > 0, self.b(x), x))


@pytest.mark.parametrize(
    "how", ["branch", "caught", "list", "index", "chosen", "written", "elementwise"]
)
def test_what_is_not_computed_decides_nothing(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, x = Branching(how).eval(), torch.rand(5, 6)

    def blocks() -> list[Any]:
        return [[(*block.names,), block.count] for block in channel_blocks(model, x)]

    found = blocks()
    monkeypatch.setattr("engine.speedup.guesses._SHAPES", {})  # all is computed
    assert found == blocks()
    assert any(count == 10 for _, count in found)


def test_products_are_zeros_while_groups_are_looked_for() -> None:
    seen: list[Tensor] = []
    model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ConvTranspose2d(8, 4, 3, 2))
    model.register_forward_hook(lambda module, args, output: seen.append(output.detach().clone()))
    x = torch.randn(2, 3, 9, 9)
    plan(model, x)
    model(x)
    assert seen[0].shape == seen[1].shape
    assert not bool(seen[0].any())


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (nn.Conv2d(3, 4, 3).double(), torch.randn(1, 3, 8, 8)),
        (nn.Conv2d(3, 4, 3), torch.randn(1, 2, 8, 8)),
        (nn.Conv2d(3, 4, 3), torch.randn(1, 3, 2, 8)),
        (nn.Linear(3, 4).double(), torch.randn(1, 3)),
        (nn.Linear(3, 4), torch.randn(1, 2)),
    ],
)
def test_inputs_that_do_not_fit_are_refused_all_the_same(layer: nn.Module, x: Tensor) -> None:
    with pytest.raises(RuntimeError) as direct:
        layer(x)
    with pytest.raises(RuntimeError) as planned:
        channel_blocks(layer, x)
    assert str(planned.value) == str(direct.value)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize(("stride", "padding", "dilation"), [(1, 0, 1), (2, 1, 1), (3, 2, 2)])
def test_a_convolution_that_is_not_computed_has_its_shape(
    transposed: bool, groups: int, stride: int, padding: int, dilation: int
) -> None:
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    layer = kind(6, 9, (3, 2), stride, padding, groups=groups, dilation=dilation)
    shapes = []
    layer.register_forward_hook(lambda module, args, output: shapes.append(output.shape))
    x = torch.randn(2, 6, 11, 8)
    plan(layer, x)
    layer(x)
    assert shapes[0] == shapes[1]
