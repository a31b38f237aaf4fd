"""Layers that are bound together lose the same filters; budgets over the whole model; multiples."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import engine
from engine import ConfigError, Wrapper
from engine.algorithms import (
    ActivationAPoZRankFilterPruner,
    ActivationMeanRankFilterPruner,
    AGPPruner,
    FPGMPruner,
    L1FilterPruner,
    L2FilterPruner,
    SlimPruner,
    TaylorFOWeightFilterPruner,
)
from engine.pruning import bound_groups
from plugins_builtin.channel_rounding import ChannelRounding
from plugins_builtin.dependency_aware import DependencyAware
from plugins_builtin.global_ranking import GlobalRanking

PRUNERS = [
    L1FilterPruner,
    L2FilterPruner,
    FPGMPruner,
    ActivationAPoZRankFilterPruner,
    ActivationMeanRankFilterPruner,
    TaylorFOWeightFilterPruner,
]
X = torch.randn(4, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.a = nn.Conv2d(channels, 2 * channels, 3, padding=1, bias=False)
        self.norm_a = nn.BatchNorm2d(2 * channels)
        self.b = nn.Conv2d(2 * channels, channels, 3, padding=1, bias=False)
        self.norm_b = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm_b(self.b(F.relu(self.norm_a(self.a(x)))))
        return F.relu(x + y)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.one, self.two = Block(12), Block(12)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        return self.head(self.two(self.one(x)).mean((2, 3)))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    model = Net().double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean):
                nn.init.normal_(tensor, 0.5, 0.3)
    return model


CONVS: list[dict[str, Any]] = [{"op_types": ["Conv2d"], "sparsity": 0.5}]


def train(model: nn.Module, steps: int = 2, optimizer: torch.optim.Optimizer | None = None) -> None:
    optimizer = optimizer or torch.optim.SGD(model.parameters(), 0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        model(X).square().sum().backward()
        optimizer.step()


def removed(pruner: Any) -> dict[str, list[int]]:
    return {
        w.name: (w.mask("weight").flatten(1) == 0).all(1).nonzero().flatten().tolist()
        for w in pruner.get_modules_wrapper()
    }


@pytest.mark.parametrize("kind", PRUNERS)
def test_bound_layers_lose_the_same_filters_and_speedup_takes_half(
    kind: type[Any], net: Net
) -> None:
    pruner = kind(net, CONVS, dependency_aware=True, dummy_input=X)
    pruner.compress()
    net.train()
    train(net)
    net.eval()
    gone = removed(pruner)
    assert gone["stem"] == gone["one.b"] == gone["two.b"]
    assert {name: len(filters) for name, filters in gone.items()} == {
        "stem": 6, "one.a": 12, "one.b": 6, "two.a": 12, "two.b": 6,
    }  # fmt: skip
    expected = net(X)
    pruner.apply_speedup(X)
    assert [tuple(m.weight.shape[:2]) for m in net.modules() if isinstance(m, nn.Conv2d)] == [
        (6, 3), (12, 6), (6, 12), (12, 6), (6, 12),
    ]  # fmt: skip
    torch.testing.assert_close(net(X), expected, rtol=1e-10, atol=1e-12)


def test_filters_are_ranked_by_the_sum_over_the_group(net: Net) -> None:
    """The reference adds the L1 norms of the three layers by hand."""
    norms = [m.weight.detach().abs().sum((1, 2, 3)) for m in (net.stem, net.one.b, net.two.b)]
    expected = sorted(torch.stack(norms).sum(0).argsort()[:6].tolist())
    pruner = L1FilterPruner(net, CONVS, dependency_aware=True, dummy_input=X)
    pruner.compress()
    assert removed(pruner)["stem"] == expected


def test_the_norms_after_removed_filters_are_masked_and_put_back(net: Net) -> None:
    before = {name: value.clone() for name, value in net.state_dict().items()}
    pruner = L1FilterPruner(net, CONVS, dependency_aware=True, dummy_input=X)
    pruner.compress()
    gone = removed(pruner)["stem"]
    assert not net.norm.weight[gone].any()
    assert not net.norm.bias[gone].any()
    assert not net.one.norm_b.bias[gone].any()
    pruner.unwrap()
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_masked_norms_stay_masked_while_training_and_after_a_restart(net: Net) -> None:
    pruner = L1FilterPruner(net, CONVS, dependency_aware=True, dummy_input=X)
    pruner.compress()
    gone = removed(pruner)["stem"]
    train(net)
    assert not net.norm.weight[gone].any()
    state, weights = pruner.state_dict(), net.state_dict()
    fresh = Net().double()
    again = L1FilterPruner(fresh, CONVS, dependency_aware=True, dummy_input=X)
    again.compress()
    fresh.load_state_dict(weights)
    again.load_state_dict(state)
    train(fresh)
    assert removed(again)["stem"] == gone
    assert not fresh.norm.weight[gone].any()


def test_exported_masks_hold_the_norms(net: Net, tmp_path: Any) -> None:
    pruner = L1FilterPruner(net, CONVS, dependency_aware=True, dummy_input=X)
    pruner.compress()
    pruner.export_model(tmp_path / "model.pth", tmp_path / "mask.pth")
    masks = engine.load_masks(tmp_path / "mask.pth")
    gone = removed(pruner)["stem"]
    assert (~masks["norm"]["weight"]).nonzero().flatten().tolist() == gone
    assert (~masks["norm"]["bias"]).nonzero().flatten().tolist() == gone


def test_the_least_sparsity_of_a_group_holds_for_all_of_it(net: Net) -> None:
    entries = [*CONVS, {"op_names": ["two.b"], "sparsity": 0.25}]
    pruner = L1FilterPruner(net, entries, dependency_aware=True, dummy_input=X)
    pruner.compress()
    gone = removed(pruner)
    assert gone["stem"] == gone["one.b"] == gone["two.b"]
    assert len(gone["stem"]) == 3
    assert len(gone["one.a"]) == 12


def test_slim_masks_of_norms_agree(net: Net) -> None:
    entries = [{"op_types": ["BatchNorm2d"], "sparsity": 0.4}]
    pruner = SlimPruner(net, entries, dependency_aware=True, dummy_input=X)
    pruner.compress()
    masks = {w.name: w.mask("weight") for w in pruner.get_modules_wrapper()}
    assert torch.equal(masks["norm"], masks["one.norm_b"])
    assert torch.equal(masks["norm"], masks["two.norm_b"])
    expected = net(X)
    before = sum(p.numel() for p in net.parameters())
    pruner.apply_speedup(X)
    torch.testing.assert_close(net(X), expected, rtol=1e-10, atol=1e-12)
    assert sum(p.numel() for p in net.parameters()) < 0.8 * before


class Stranger(engine.Pruner):
    """A pruner that only knows ``calc_mask``: it removes the filters of odd number first."""

    one_shot = True

    def calc_mask(self, wrapper: Wrapper, sparsity: float) -> dict[str, Tensor]:
        mask = torch.ones_like(wrapper.weight)
        count = int(len(mask) * sparsity)
        mask[[*range(1, len(mask), 2), *range(0, len(mask), 2)][:count]] = 0
        return {"weight_mask": mask}


def test_any_pruner_of_filters_can_be_wrapped(net: Net) -> None:
    pruner = Stranger(net, CONVS, extensions=[DependencyAware(dummy_input=X)])
    pruner.compress()
    gone = removed(pruner)
    assert gone["stem"] == gone["one.b"] == [1, 3, 5, 7, 9, 11]


def test_a_schedule_around_it_nests_the_masks(net: Net) -> None:
    entries = [
        {"op_types": ["Conv2d"], "final_sparsity": 0.5, "start_epoch": 0, "end_epoch": 3,
         "frequency": 1}
    ]  # fmt: skip
    optimizer = torch.optim.SGD(net.parameters(), 0.01)
    pruner = AGPPruner(
        net, entries, optimizer, pruning_algorithm="l1_filter", dependency_aware=True, dummy_input=X
    )
    pruner.compress()
    seen: set[int] = set()
    for epoch in range(4):
        pruner.update_epoch(epoch)
        train(net, 1, optimizer)
        gone = removed(pruner)
        assert gone["stem"] == gone["one.b"]
        assert seen <= set(gone["stem"])
        seen = set(gone["stem"])
    assert len(seen) == 6


def test_kept_filters_are_a_multiple(net: Net) -> None:
    pruner = L1FilterPruner(net, CONVS, extensions=[DependencyAware(round_to=8)], dummy_input=X)
    pruner.compress()
    gone = removed(pruner)
    # 12 filters: 8 stay; 24: 16 do.
    assert {name: len(filters) for name, filters in gone.items()} == {
        "stem": 4, "one.a": 8, "one.b": 4, "two.a": 8, "two.b": 4,
    }  # fmt: skip


def test_rounding_by_itself_restores_the_largest_filters(net: Net) -> None:
    plain = L1FilterPruner(net, CONVS)
    plain.compress()
    before = removed(plain)["one.a"]
    plain.unwrap()
    pruner = L1FilterPruner(net, CONVS, extensions=[ChannelRounding(8)])
    pruner.compress()
    after = removed(pruner)["one.a"]
    norms = net.one.a.weight.detach()
    assert set(after) < set(before)
    assert len(after) == 8
    assert not norms[after].any()


@pytest.mark.parametrize("target", ["parameters", "filters"])
@pytest.mark.parametrize("asked", [0.2, 0.5, 0.7])
def test_a_global_budget_is_met_within_one_channel(target: str, asked: float, net: Net) -> None:
    total = sum(p.numel() for p in net.parameters())
    filters = sum(m.out_channels for m in net.modules() if isinstance(m, nn.Conv2d))
    entries = [{"op_types": ["Conv2d"], "sparsity": asked}]
    pruner = L1FilterPruner(net, entries, extensions=[GlobalRanking(target)], dummy_input=X)
    pruner.compress()
    pruner.apply_speedup(X)
    left = sum(p.numel() for p in net.parameters()) / total
    if target == "filters":
        left = sum(m.out_channels for m in net.modules() if isinstance(m, nn.Conv2d)) / filters
    assert 1 - asked - 0.06 <= left <= 1 - asked + 1e-9


def test_no_layer_loses_more_than_the_cap(net: Net) -> None:
    entries = [{"op_types": ["Conv2d"], "sparsity": 0.9}]
    ranking = GlobalRanking("filters", max_layer_sparsity=0.25)
    pruner = L1FilterPruner(net, entries, extensions=[ranking], dummy_input=X)
    pruner.compress()
    assert {name: len(filters) for name, filters in removed(pruner).items()} == {
        "stem": 3, "one.a": 6, "one.b": 3, "two.a": 6, "two.b": 3,
    }  # fmt: skip


def test_without_example_inputs_the_error_says_so(net: Net) -> None:
    pruner = L1FilterPruner(net, CONVS, dependency_aware=True)
    with pytest.raises(ConfigError) as caught:
        pruner.compress()
    assert str(caught.value) == (
        "L1FilterPruner: 1 problem\n\n/dummy_input\n"
        "  dependency_aware runs the model and needs example inputs\n"
        "  give the pruner dummy_input=: a tensor, a tuple, or a dict of keyword arguments"
    )
    assert net(X).isfinite().all()


def test_example_inputs_that_do_not_fit_are_named(net: Net) -> None:
    pruner = L1FilterPruner(net, CONVS, dependency_aware=True, dummy_input=torch.zeros(1, 2))
    with pytest.raises(ConfigError, match="the model does not run on the example inputs"):
        pruner.compress()


def test_different_sparsities_have_no_global_meaning(net: Net) -> None:
    entries = [*CONVS, {"op_names": ["two.b"], "sparsity": 0.25}]
    pruner = L1FilterPruner(net, entries, extensions=[GlobalRanking()], dummy_input=X)
    with pytest.raises(ConfigError, match="give all layers one sparsity"):
        pruner.compress()


def test_groups_are_the_connected_layers(net: Net) -> None:
    pruner = L1FilterPruner(net, CONVS)
    groups = bound_groups(net, pruner.get_modules_wrapper(), X, None)
    assert [[m.name for m in group.members] for group in groups] == [
        ["stem", "one.b", "two.b"], ["one.a"], ["two.a"],
    ]  # fmt: skip


def test_from_a_configuration_file(net: Net) -> None:
    config = {
        "compressor": "l1_filter",
        "config_list": CONVS,
        "extensions": [{"dependency_aware": {"round_to": 2}}],
    }
    pruner = engine.create_compressor(net, config, dummy_input=X)
    pruner.compress()
    gone = removed(pruner)
    assert gone["stem"] == gone["two.b"]


@pytest.mark.parametrize("extension", ["dependency_aware", "global_ranking"])
def test_a_pruner_of_single_weights_is_refused_where_layers_are_bound(extension):
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    before = model[0].weight.detach().clone()
    config = {
        "compressor": "level",
        "config_list": [{"op_types": ["Linear"], "sparsity": 0.5}],
        "extensions": [extension],
    }
    pruner = engine.create_compressor(model, config, dummy_input=torch.randn(2, 16))
    with pytest.raises(ConfigError, match='level removes single weights of layer "0", and'):
        pruner.compress()
    assert torch.equal(model[0].weight, before)


def test_filters_are_ranked_once_in_a_round(net: Net) -> None:
    """The pruner's own mask, which is replaced, takes the ranking that the group has asked for."""
    asked: list[str] = []

    class Counting(L1FilterPruner):
        def filter_importance(self, wrapper: Wrapper, channels: Any) -> Tensor:
            asked.append(wrapper.name)
            return super().filter_importance(wrapper, channels)

    pruner = Counting(net, CONVS, dependency_aware=True, dummy_input=X)
    pruner.compress()
    layers = ["stem", "one.a", "one.b", "two.a", "two.b"]
    assert sorted(asked) == sorted(layers)
    # The next round ranks anew: nothing that was said before is left over.
    pruner.update_masks(every_layer=True)
    assert sorted(asked) == sorted(2 * layers)
    assert not pruner.ranked
    pruner.unwrap()
    assert not pruner.ranked


@pytest.mark.parametrize("groups", [1, 2, 4, 16])
@pytest.mark.parametrize("outputs", [16, 32])
@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_norms_behind_grouped_convolutions_lose_what_these_lose(
    kind: type[Any], outputs: int, groups: int
) -> None:
    """Each group loses as many; of a depthwise one, what the layer before it loses."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), kind(16, outputs, 3, groups=groups)]
    norm = nn.BatchNorm2d(outputs)
    model = nn.Sequential(*layers, norm, nn.ReLU(), nn.Conv2d(outputs, 4, 1)).double().eval()
    for tensor in (norm.weight, norm.bias, norm.running_mean):
        nn.init.normal_(tensor, 0.3, 0.5)
    entries = [
        {"op_types": sorted({"Conv2d", kind.__name__}), "sparsity": 0.5},
        {"op_names": ["5"], "exclude": True},
    ]
    pruner = L1FilterPruner(model, entries, dependency_aware=True, dummy_input=X)
    pruner.compress()
    assert [(c.name, int((c.mask == 0).sum())) for c in pruner.companions] == [
        ("3", outputs // 2), ("3", outputs // 2),
    ]  # fmt: skip
    expected = model(X)
    pruner.apply_speedup()
    assert norm.weight.shape == (outputs // 2,)
    assert layers[0].weight.shape[0] == 8
    torch.testing.assert_close(model(X), expected, rtol=1e-10, atol=1e-12)
