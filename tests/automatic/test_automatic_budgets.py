"""Asked, masked and sped-up sparsity are one number."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from searches import SEARCHING, search
from tests_small import Small
from torch import nn

from engine.analysis import count_flops_params
from engine.automatic import fit
from engine.errors import ConfigError, EngineError, PluginError
from engine.speedup import speedup

X = torch.randn(2, 3, 8, 8)


def parameters(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", SEARCHING)
@pytest.mark.parametrize("budget", ["parameters", "flops"])
def test_what_is_asked_for_is_what_speedup_removes(name, budget, model, evaluator, trainer):
    counted = count_flops_params(model, X)
    before = parameters(model) if budget == "parameters" else counted.flops
    pruner = search(model, name, evaluator, trainer, budget=budget, sparsity=0.45)
    pruner.compress()
    by_unit = {unit.name: pruner.plan.get(unit.name, 0.0) for unit in pruner.units}
    expected = pruner.removed(by_unit)
    model.eval()
    masked = model(X)
    pruner.apply_speedup()
    after = parameters(model) if budget == "parameters" else count_flops_params(model, X).flops
    assert 1 - after / before == pytest.approx(expected, abs=1e-9)
    assert 0.45 <= expected <= 0.6  # one filter of this network is up to a tenth of it
    torch.testing.assert_close(model.eval()(X), masked)


@pytest.mark.parametrize("name", SEARCHING)
def test_weights_are_those_of_the_selected_layers(name, model, evaluator, trainer):
    pruner = search(model, name, evaluator, trainer, base_algo="level", dummy_input=None)
    pruner.compress()
    masks = [wrapper.weight_mask for wrapper in pruner.wrappers]
    zeros = sum(int((mask == 0).sum()) for mask in masks)
    assert zeros / sum(mask.numel() for mask in masks) == pytest.approx(0.5, abs=0.005)


@pytest.mark.parametrize("name", SEARCHING)
def test_only_named_layers_are_pruned(name, model, evaluator, trainer):
    others = copy.deepcopy(model.state_dict())
    pruner = search(
        model,
        name,
        evaluator,
        None if name in ("sensitivity", "simulated_annealing", "amc") else trainer,
        op_types=["Conv2d"], op_names=["inner", "last"], budget="weights", sparsity=0.4,
    )  # fmt: skip
    pruner.compress()
    assert set(pruner.plan) <= {"inner", "last"}
    assert pruner.plan
    for layer in ("stem", "outer", "head"):
        assert not (model.get_submodule(layer).weight == 0).any()
    if name in ("sensitivity", "simulated_annealing", "amc"):  # these train nothing here
        torch.testing.assert_close(model.stem.weight, others["stem.weight"])


def test_layers_that_are_added_are_one_unit(model, evaluator):
    pruner = search(model, "simulated_annealing", evaluator, None)
    pruner.compress()
    units = [[wrapper.name for wrapper in unit.wrappers] for unit in pruner.units]
    assert units == [["stem", "outer"], ["inner"], ["last"]]  # the head makes the output
    assert pruner.plan["stem"] == pruner.plan["outer"]


def test_latency_is_measured_on_the_smaller_model(evaluator, trainer):
    wide = nn.Sequential(nn.Linear(64, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU())
    wide.append(nn.Linear(1024, 8))
    pruner = search(
        wide, "amc", lambda model: 1.0, None, op_types=["Linear"],
        dummy_input=torch.randn(64, 64), budget="latency", sparsity=0.3,
        train_episode=2, warmup=1, bsize=2,
    )  # fmt: skip
    pruner.compress()
    # Times are the machine's; that the smaller model was timed is what its sizes show.
    assert [trial.removed >= 0.3 - 1e-9 for trial in pruner.trials] == [False, True, True]
    before = parameters(wide)
    pruner.apply_speedup()
    assert parameters(wide) < before


def test_a_budget_out_of_reach_is_refused_and_the_model_is_as_found(model, evaluator, trainer):
    before = copy.deepcopy(model.state_dict())
    pruner = search(
        model, "simulated_annealing", evaluator, trainer, op_names=["inner"], op_types=["Conv2d"],
        budget="parameters", sparsity=0.9,
    )  # fmt: skip
    with pytest.raises(EngineError, match=r"0\.9 of the whole shall go, but at most 0\.36\d* can"):
        pruner.compress()
    assert type(model.inner) is nn.Conv2d
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])


def test_entries_with_different_sparsities_are_refused(model, evaluator):
    from engine.algorithms import AMCPruner

    entries = [{"op_names": ["inner"], "sparsity": 0.5}, {"op_names": ["last"], "sparsity": 0.6}]
    with pytest.raises(ConfigError, match="sparsity"):
        AMCPruner(model, entries, evaluator=evaluator)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(0.05, 1), min_size=1, max_size=5),
    st.lists(st.integers(1, 400), min_size=5, max_size=5),
    st.floats(0.01, 0.94),
)
def test_fit_returns_the_weakest_plan_that_reaches_the_target(shape, sizes, target):
    names = [str(i) for i in range(len(shape))]

    def family(strength):
        return {
            n: min(0.95, strength * 0.95 * s / min(shape))
            for n, s in zip(names, shape, strict=True)
        }

    def removed(plan):
        gone = sum(math.floor(plan[n] * sizes[i]) for i, n in enumerate(names))
        return gone / sum(sizes[: len(names)])

    if removed(family(1.0)) < target - 1e-9:
        with pytest.raises(EngineError):
            fit(family, removed, target)
        return
    plan = fit(family, removed, target)
    assert removed(plan) >= target - 1e-9
    weaker = {name: value * (1 - 1e-6) for name, value in plan.items()}
    assert removed(weaker) < target or removed(weaker) == removed(plan)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0, 0.95), min_size=3, max_size=3))
def test_the_cost_of_any_plan_is_that_of_the_smaller_model(sparsities):
    model = Small().eval()
    compared = []

    def evaluator(model):  # called first for the model as it is, before any mask
        if not compared:
            plan = {unit.name: s for unit, s in zip(pruner.units, sparsities, strict=True)}
            compared.append(pruner.removed(plan))
            with pruner._masks.tried(pruner.layers_of(plan)):
                small = copy.deepcopy(model)
            speedup(small, X)
            compared.append(1 - parameters(small) / parameters(Small()))
        return 1.0

    pruner = search(model, "amc", evaluator, None, budget="parameters", train_episode=1)
    pruner.compress()
    assert compared[0] == pytest.approx(compared[1], abs=1e-12)


class Grouped(nn.Module):
    """A depthwise and a grouped convolution, each after one that feeds it."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.second = nn.Conv2d(8, 16, 1)
        self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=4)
        self.third = nn.Conv2d(16, 12, 1)
        self.head = nn.Linear(12, 4)

    def forward(self, x):
        x = torch.relu(self.depthwise(torch.relu(self.first(x))))
        x = torch.relu(self.grouped(torch.relu(self.second(x))))
        return self.head(torch.relu(self.third(x)).mean((2, 3)))


class Encoder(nn.Module):
    """A layer of a transformer, whose norms go on dividing by the sizes that were."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(24, 16)
        self.layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        return self.head(self.layer(self.embed(x.reshape(len(x), 8, 24))).mean(1))


@pytest.mark.parametrize(("kind", "layers"), [(Grouped, "Conv2d"), (Encoder, "Linear")])
@pytest.mark.parametrize("base", ["l1_filter", "fpgm"])
def test_groups_and_norms_are_counted_as_speedup_leaves_them(kind, layers, base, evaluator):
    torch.manual_seed(0)
    net = kind().eval()
    before = parameters(net)
    pruner = search(
        net, "simulated_annealing", evaluator, None,
        base_algo=base, budget="parameters", sparsity=0.3, op_types=[layers],
    )  # fmt: skip
    pruner.compress()
    removed = pruner.removed({unit.name: pruner.plan.get(unit.name, 0.0) for unit in pruner.units})
    masked = net.eval()(X)
    pruner.apply_speedup()
    assert 1 - parameters(net) / before == pytest.approx(removed, abs=1e-9)
    assert 0.3 <= removed <= 0.4
    torch.testing.assert_close(net(X), masked)


def test_a_pruner_that_ranks_all_layers_together_is_refused(evaluator):
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    ).eval()  # fmt: skip
    with torch.no_grad():
        net[4].weight.mul_(0.1)  # all that is asked of both would come from here
    found = copy.deepcopy(net.state_dict())
    pruner = search(
        net, "simulated_annealing", evaluator, None, base_algo="slim", op_types=["BatchNorm2d"]
    )
    with pytest.raises(PluginError, match=r"slim \(engine .*\) removes 0 of layer") as caught:
        pruner.compress()
    assert caught.value.layer == "1"
    torch.testing.assert_close(net.state_dict(), found)
