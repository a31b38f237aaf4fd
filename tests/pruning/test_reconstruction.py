"""Fitting layers anew to what the dense model put out."""

import copy

import pytest
import torch
from models import ConvNet, TiedLanguageModel, images, mlp
from torch import nn

import engine
from engine.algorithms import L1FilterPruner, LevelPruner
from engine.pruning import Reconstruction

ALL = [{"op_types": ["Conv2d", "Linear"], "sparsity": 0.5}]


def batches(count=4, size=32):
    return [images(size, seed) for seed in range(count)]


def test_the_solution_is_that_of_torch_for_the_damped_problem():
    torch.manual_seed(0)
    layer = nn.Linear(6, 3).double()
    x = torch.randn(40, 6, dtype=torch.float64)
    wanted = layer(x).detach()
    reconstruction = Reconstruction(layer, [x], damping=0.1)
    with torch.no_grad():
        layer.weight[:, :2] = 0
        layer.weight[2] = 0
        start = torch.cat([layer.weight, layer.bias[:, None]], 1)[:2, 2:].clone()
    (refit,) = reconstruction.apply()
    seen = torch.cat([x[:, 2:], torch.ones_like(x[:, :1])], 1)
    # |seen d - missing|^2 + h |d|^2, as one system with rows for the second term.
    held = (0.1 * seen.square().sum(0).mean()).sqrt()
    rows = torch.cat([seen, held * torch.eye(5, dtype=torch.float64)])
    missing = wanted[:, :2] - seen @ start.T
    change = torch.linalg.lstsq(rows, torch.cat([missing, missing.new_zeros(5, 2)])).solution.T
    found = torch.cat([layer.weight, layer.bias[:, None]], 1)[:2, 2:]
    assert torch.allclose(found, start + change, atol=1e-10)
    left = (wanted[:, :2] - seen @ (start + change).T).square().sum()
    assert refit.before == pytest.approx(
        float(missing.square().sum() / wanted[:, :2].square().sum())
    )
    assert refit.after == pytest.approx(float(left / wanted[:, :2].square().sum()))


@pytest.mark.parametrize("groups", [1, 2])
def test_a_filter_that_repeats_another_can_go_without_a_trace(groups):
    torch.manual_seed(0)
    first = nn.Conv2d(1, 4 * groups, 3, bias=False)
    second = nn.Conv2d(4 * groups, 6, 3, stride=2, padding=1, groups=groups)
    model = nn.Sequential(first, nn.Tanh(), second).double()
    x = images(32).double()
    with torch.no_grad():
        first.weight[3] = -first.weight[1]
        dense = model(x)
        reconstruction = Reconstruction(model, [x], points=30, damping=1e-9)
        first.weight[3] = 0
        assert (model(x) - dense).abs().max() > 0.01
        before, after = (refit.before for refit in reconstruction.apply())
        assert (model(x) - dense).abs().max() < 1e-6
    assert before < 1e-20
    assert after > 1e-3


def test_zeros_stay_and_no_layer_becomes_worse():
    torch.manual_seed(0)
    for pruner_class in (L1FilterPruner, LevelPruner):
        model = ConvNet()
        reconstruction = Reconstruction(model, batches())
        model = pruner_class(model, ALL).compress()
        masked = {n: p == 0 for n, p in model.named_parameters() if "weight" in n}
        for refit in reconstruction.apply():
            assert refit.after <= refit.before
            assert refit.before > 0
        for name, zero in masked.items():
            assert torch.equal(model.get_parameter(name) == 0, zero)


def test_soft_masks_stand_and_the_weights_beneath_move():
    class Soft(engine.Pruner):
        straight_through = True

        def calc_mask(self, wrapper, sparsity):
            return {
                "weight_mask": (torch.arange(wrapper.weight.numel()) % 2).view_as(wrapper.weight)
            }

    torch.manual_seed(0)
    model = mlp(6, 8, 3)
    x = torch.randn(64, 6)
    reconstruction = Reconstruction(model, [x])
    dense = model(x).detach()
    Soft(model, [{"op_types": ["Linear"], "sparsity": 0.5}]).compress()
    masked = (model(x) - dense).square().sum()
    reconstruction.apply()
    assert (model(x) - dense).square().sum() < masked / 2
    assert torch.equal(model[0].weight == 0, torch.arange(48).view(8, 6) % 2 == 0)
    assert model[0]._parameters["weight"].count_nonzero() == 48


def test_what_speedup_leaves_is_the_fitted_model():
    torch.manual_seed(0)
    model = ConvNet().double()
    inputs = [batch.double() for batch in batches()]
    reconstruction = Reconstruction(model, inputs)
    entry = [{"op_names": ["conv1", "conv2"], "sparsity": 0.5}]
    pruner = L1FilterPruner(model, entry, dependency_aware=True, dummy_input=inputs[0])
    pruner.compress()
    reconstruction.apply()
    fitted = copy.deepcopy(model).eval()(inputs[0])
    small = pruner.apply_speedup(inputs[0])
    assert small.conv1.out_channels == 3
    assert torch.allclose(small.eval()(inputs[0]), fitted, atol=1e-10)


def test_training_goes_on_under_the_masks():
    model = ConvNet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    reconstruction = Reconstruction(model, batches())
    pruner = LevelPruner(model, ALL, optimizer)
    pruner.compress()
    reconstruction.apply()
    model.train()(images()).square().sum().backward()
    optimizer.step()
    for wrapper in pruner.get_modules_wrapper():
        assert wrapper.weight.count_nonzero() <= wrapper.weight_mask.sum()


def test_the_model_is_left_as_it_is_until_then():
    model = ConvNet().train()
    state = copy.deepcopy(model.state_dict())
    random = torch.get_rng_state()
    reconstruction = Reconstruction(model, iter(batches()))
    assert model.training
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    reconstruction.apply()
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert torch.equal(model.bn1.running_mean, state["bn1.running_mean"])
    for key, value in model.state_dict().items():  # nothing was pruned: nothing is to be fitted
        assert torch.allclose(value, state[key], atol=1e-5)


def test_layers_with_one_weight_are_left_alone_and_modules_that_run_twice_are_not():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.again = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x):
            return self.again(torch.tanh(self.again(torch.tanh(self.first(x)))))

    torch.manual_seed(0)
    model, x = Twice(), torch.randn(50, 6)
    reconstruction = Reconstruction(model, [x, x + 1])
    with torch.no_grad():
        model.first.weight[:3] = 0
    refits = reconstruction.apply()
    assert [refit.layer for refit in refits] == ["first", "again"]
    assert refits[1].after < refits[1].before
    tied = TiedLanguageModel()
    refits = Reconstruction(tied, [torch.arange(12).view(3, 4)]).apply()
    assert [refit.layer for refit in refits] == ["hidden"]


def test_few_inputs_do_not_make_the_model_worse_on_others():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 3))
    few, others = torch.randn(44, 40), torch.randn(400, 40)
    dense = model(others).detach()
    off = {}
    for damping in (0.01, None):
        fitted = copy.deepcopy(model)
        reconstruction = Reconstruction(fitted, few.split(11), damping=damping)
        LevelPruner(fitted, [{"op_types": ["Linear"], "sparsity": 0.2}]).compress()
        masked = float((fitted(others) - dense).detach().square().sum())
        refits = reconstruction.apply()
        off[damping] = float((fitted(others) - dense).detach().square().sum()) / masked
    assert all(refit.after <= refit.before for refit in refits)
    assert off[0.01] > 1.5
    assert off[None] < 0.9


@pytest.mark.parametrize("parts", [1, 4])
def test_errors_are_those_of_the_inputs_that_were_kept_apart(parts):
    torch.manual_seed(0)
    layer, x = nn.Linear(5, 3).double(), torch.randn(80, 5, dtype=torch.float64)
    wanted = layer(x).detach()
    reconstruction = Reconstruction(layer, x.split(80 // parts))
    with torch.no_grad():
        layer.weight[:, 1] = 0
        before = (layer(x) - wanted)[60:].square().sum() / wanted[60:].square().sum()
        (refit,) = reconstruction.apply()
        after = (layer(x) - wanted)[60:].square().sum() / wanted[60:].square().sum()
    assert refit.before == pytest.approx(float(before))
    assert refit.after == pytest.approx(float(after))


def test_one_example_has_none_to_keep_apart_and_is_fitted_with_care():
    torch.manual_seed(0)
    layer, x = nn.Linear(5, 3), torch.randn(1, 5)
    reconstruction = Reconstruction(layer, [x])
    with torch.no_grad():
        layer.weight[:, 1] = 0
    (refit,) = reconstruction.apply()
    assert 0 < refit.after < refit.before


def test_a_layer_that_runs_for_some_batches_only_is_fitted_on_those():
    class Sometimes(nn.Module):
        def __init__(self):
            super().__init__()
            self.always, self.rarely = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            x = self.always(x)
            return self.rarely(x) if len(x) > 5 else x

    torch.manual_seed(0)
    model = Sometimes()
    sizes = (3, 20, 4)
    reconstruction = Reconstruction(model, [torch.randn(size, 4) for size in sizes])
    with torch.no_grad():
        model.always.weight[0] = 0
    refits = {refit.layer: refit for refit in reconstruction.apply()}
    assert refits["rarely"].after < refits["rarely"].before
