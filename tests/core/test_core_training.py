"""Right after each optimizer step every masked weight is exactly zero."""

import copy

import pytest
import torch
from models import ConvNet, images, mlp, pruner_plugins, settings_of, train_step, zeros
from torch import nn

from engine import ConfigError, Pruner
from engine.algorithms import L1FilterPruner, LevelPruner

HALF = [{"sparsity": 0.5, "op_types": ["default"]}]
OPTIMIZERS = {
    "SGD with momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.1),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.5),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9),
    "one parameter group each": lambda p: torch.optim.SGD([{"params": [q]} for q in p], lr=0.1),
}


def assert_masked(pruner):
    for wrapper in pruner.get_modules_wrapper():
        for name in ("weight", "bias"):
            mask = wrapper.mask(name)
            if mask is not None:
                assert not getattr(wrapper, name)[mask == 0].any()


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
@pytest.mark.parametrize("when", ["before, passed", "before, not passed", "after"])
@pytest.mark.parametrize("cls", [LevelPruner, L1FilterPruner])
def test_whatever_momentum_and_weight_decay_do(make, when, cls):
    model = ConvNet()
    optimizer = make(list(model.parameters())) if when != "after" else None
    for _ in range(2):
        if optimizer is not None:
            train_step(model, optimizer, images())
    pruner = cls(model, HALF, optimizer if when == "before, passed" else None)
    pruner.compress()
    optimizer = optimizer or make(list(model.parameters()))
    for batch in range(4):
        train_step(model, optimizer, images(seed=batch))
        assert_masked(pruner)
        pruner.step()
        assert_masked(pruner)
    removed = [zeros(w.weight_mask) / w.weight.numel() for w in pruner.get_modules_wrapper()]
    assert removed == [0.5] * 3


@pytest.mark.parametrize("plugin", pruner_plugins(), ids=lambda plugin: plugin.name)
def test_with_every_pruner_that_is_installed(plugin):
    model = ConvNet()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    pruner = plugin.load()(model, optimizer=optimizer, **settings_of(plugin))
    pruner.compress()
    for epoch in range(4):
        pruner.update_epoch(epoch)
        for batch in range(3):
            train_step(model, optimizer, images(seed=batch))
            assert_masked(pruner)
            pruner.step()


def test_kept_weights_train_as_if_there_were_no_pruner():
    model = nn.Linear(4, 3)
    pruner = LevelPruner(model, HALF)
    pruner.compress()
    mask = pruner.get_modules_wrapper()[0].weight_mask
    twin = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    bare = torch.optim.SGD(twin.parameters(), lr=0.1)
    for _ in range(3):
        x = torch.randn(5, 4)
        train_step(model, optimizer, x)
        train_step(twin, bare, x)
        with torch.no_grad():
            twin.weight.mul_(mask)
        assert torch.equal(model.weight, twin.weight)


def test_gradients_accumulate_over_minibatches():
    model = mlp()
    pruner = LevelPruner(model, HALF)
    pruner.compress()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for batch in range(6):
        model(torch.randn(5, 8)).square().mean().backward()
        pruner.step()
        if batch % 3 == 2:
            optimizer.step()
            optimizer.zero_grad()
        assert_masked(pruner)


def test_a_closure_is_stepped_through():
    model = mlp()
    pruner = LevelPruner(model, HALF)
    pruner.compress()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3)
    x = torch.randn(5, 8)

    def closure():
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert_masked(pruner)


def test_a_second_optimizer_for_fine_tuning_is_held_too():
    model = mlp()
    first = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = LevelPruner(model, HALF, first)
    pruner.compress()
    train_step(model, first, torch.randn(5, 8))
    second = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    train_step(model, second, torch.randn(5, 8))
    assert_masked(pruner)


def test_an_optimizer_that_gets_the_parameters_later_is_found():
    model = mlp()
    pruner = LevelPruner(model, HALF)
    pruner.compress()
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    optimizer.step()
    optimizer.add_param_group({"params": list(model.parameters())})
    train_step(model, optimizer, torch.randn(5, 8))
    assert_masked(pruner)


def test_the_optimizer_of_another_model_changes_nothing():
    class Counting(Pruner):
        calls = 0

        def calc_mask(self, wrapper):
            self.calls += 1
            return {"weight_mask": torch.ones_like(wrapper.weight)}

    model, other = nn.Linear(2, 2), nn.Linear(2, 2)
    pruner = Counting(model, HALF)
    pruner.compress()
    train_step(other, torch.optim.SGD(other.parameters(), lr=0.1), torch.randn(3, 2))
    assert pruner.calls == 1


def test_without_an_optimizer_step_applies_the_masks():
    model = mlp()
    pruner = LevelPruner(model, HALF)
    pruner.compress()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.sub_(0.1)
    pruner.step()
    assert_masked(pruner)


def test_step_and_update_epoch_are_allowed_at_any_time():
    pruner = LevelPruner(mlp(), HALF)
    pruner.step()
    pruner.update_epoch(0)
    pruner.compress()
    pruner.step()
    pruner.update_epoch(7)
    pruner.unwrap()
    pruner.step()
    pruner.update_epoch(1)


def test_masks_are_recomputed_after_each_step_unless_the_pruner_is_one_shot():
    class Counting(Pruner):
        calls = 0

        def calc_mask(self, wrapper):
            self.calls += 1
            return {"weight_mask": torch.ones_like(wrapper.weight)}

    class Once(Counting):
        one_shot = True

    counts = []
    for cls in (Counting, Once):
        model = nn.Linear(2, 2)
        pruner = cls(model, HALF)
        pruner.compress()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for epoch in range(3):
            pruner.update_epoch(epoch)
            train_step(model, optimizer, torch.randn(3, 2))
        counts.append(pruner.calls)
    assert counts == [4, 1]


def test_a_straight_through_pruner_trains_the_dense_weights_beneath():
    class Soft(LevelPruner):
        straight_through = True

    model = nn.Linear(6, 5)
    dense = model.weight.detach().clone()
    pruner = Soft(model, HALF)
    pruner.compress()
    mask = pruner.get_modules_wrapper()[0].weight_mask
    assert torch.equal(model.weight, dense * mask)
    assert torch.equal(pruner.get_modules_wrapper()[0].weight, dense)
    x = torch.randn(3, 6)
    model(x).sum().backward()
    expected = x.sum(dim=0).expand(5, 6)
    assert torch.allclose(pruner.get_modules_wrapper()[0].weight.grad, expected)
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert torch.allclose(pruner.get_modules_wrapper()[0].weight, dense - 0.1 * expected)
    pruner.unwrap()
    assert torch.allclose(model.weight, dense - 0.1 * expected)
    assert type(model) is nn.Linear


@pytest.mark.parametrize("given", ["adam", 0.1, [{"sparsity": 0.5}]])
def test_an_optimizer_that_is_none_is_refused(given):
    with pytest.raises(ConfigError, match=r"optimizer is a \w+") as caught:
        LevelPruner(mlp(), HALF, given)
    assert caught.value.problems[0].pointer == "/optimizer"


def test_two_pruners_on_layers_of_one_model():
    model = mlp()
    first = LevelPruner(model, [{"sparsity": 0.5, "op_names": ["0"]}])
    second = L1FilterPruner(model, [{"sparsity": 0.5, "op_names": ["2"]}])
    first.compress()
    second.compress()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(2):
        train_step(model, optimizer, torch.randn(5, 8))
        assert_masked(first)
        assert_masked(second)
    first.unwrap()
    train_step(model, optimizer, torch.randn(5, 8))
    assert model[0].weight[model[0].weight.grad != 0].all()
    assert_masked(second)
