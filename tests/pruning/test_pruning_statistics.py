"""Rankings by what is seen over minibatches: gradients and activations."""

import copy

import pytest
import torch
import torch.nn.functional as F
from models import ConvNet, images, train_step
from torch import nn

from engine.algorithms import (
    ActivationAPoZRankFilterPruner,
    ActivationMeanRankFilterPruner,
    TaylorFOWeightFilterPruner,
)
from engine.pruning import Channels

ACTIVATIONS = [ActivationAPoZRankFilterPruner, ActivationMeanRankFilterPruner]


def attach(cls, model, sparsity=0.5, **arguments):
    arguments.setdefault("statistics_batch_num", 1)
    pruner = cls(model, [{"sparsity": sparsity, "op_types": ["default"]}], **arguments)
    pruner.compress()
    return pruner


def removed(wrapper) -> list[int]:
    alive = Channels(wrapper.module).rows(wrapper.weight_mask).bool().any(dim=1)
    return (~alive).nonzero().flatten().tolist()


def statistics(pruner) -> dict[str, torch.Tensor]:
    return {w.name: w.statistic / max(1, w.batches) for w in pruner.get_modules_wrapper()}


def lowest(scores: torch.Tensor, count: int) -> list[int]:
    values = scores.tolist()
    return sorted(sorted(range(len(values)), key=lambda i: (values[i], i))[:count])


# -- Taylor ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer_class", [torch.optim.SGD, torch.optim.Adam])
def test_taylor_uses_weight_and_gradient_of_the_same_step(optimizer_class):
    model = ConvNet().double()
    pruner = attach(TaylorFOWeightFilterPruner, model, statistics_batch_num=3)
    optimizer = optimizer_class(model.parameters(), lr=0.1)
    expected = dict.fromkeys(("conv1", "conv2", "fc"), 0.0)
    for batch in range(3):
        twin = copy.deepcopy(model)
        x = images(seed=batch).double()
        output = twin(x)
        (output.square().mean() + output[..., 0].sum()).backward()
        for name in expected:
            layer = twin.get_submodule(name)
            change = (layer.weight.detach() * layer.weight.grad).flatten(1)
            expected[name] = expected[name] + change.square().sum(dim=1) / 3
        masks = [w.weight_mask.all() for w in pruner.get_modules_wrapper()]
        assert all(masks)
        train_step(model, optimizer, x)
    for wrapper in pruner.get_modules_wrapper():
        scores = expected[wrapper.name]
        assert torch.allclose(statistics(pruner)[wrapper.name].double(), scores, rtol=1e-5)
        assert removed(wrapper) == lowest(scores, len(scores) // 2)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_taylor_ground_truth_whatever_the_sign_of_the_gradient(sign):
    model = nn.Sequential(nn.Conv2d(1, 5, 5, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.arange(1.0, 6).view(5, 1, 1, 1).expand(5, 1, 5, 5))
    pruner = attach(TaylorFOWeightFilterPruner, model, 0.2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    model[0].weight.grad = torch.full_like(model[0].weight, sign)
    optimizer.step()
    assert removed(pruner.get_modules_wrapper()[0]) == [0]


def test_taylor_masks_stand_after_the_last_batch_at_once():
    model = ConvNet()
    pruner = attach(TaylorFOWeightFilterPruner, model, statistics_batch_num=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    counts = []
    for _ in range(3):
        train_step(model, optimizer, images())
        counts.append(len(removed(pruner.get_modules_wrapper()[0])))
    assert counts == [0, 3, 3]


def test_a_frozen_layer_keeps_waiting_and_disturbs_nobody():
    model = ConvNet()
    model.conv1.requires_grad_(False)
    pruner = attach(TaylorFOWeightFilterPruner, model)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    with pytest.warns(UserWarning, match='no gradient of "conv1" in 1 steps'):
        train_step(model, optimizer, images())
    assert [len(removed(w)) for w in pruner.get_modules_wrapper()] == [0, 5, 2]


# -- activations ----------------------------------------------------------------------------------


class AsModules(nn.Module):
    def __init__(self, inplace=False):
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.act = nn.ReLU(inplace)
        self.fc = nn.Linear(6 * 36, 8)
        self.head = nn.Linear(8, 4)
        with torch.no_grad():
            # Far from zero, so that what comes before the norm says nothing about after it.
            self.conv.bias.copy_(torch.tensor([9.0, -9.0, 9.0, -9.0, 9.0, -9.0]))
            self.norm.bias.copy_(torch.tensor([-1.0, -0.6, -0.2, 0.2, 0.6, 1.0]))

    def forward(self, x):
        x = self.act(self.norm(self.conv(x)))
        return self.head(self.act(self.fc(x.flatten(1))))


class AsFunctions(AsModules):
    def forward(self, x):
        x = F.relu(self.norm(self.conv(x)))
        return self.head(torch.relu(self.fc(x.flatten(1))))


class AsMethods(AsModules):
    def forward(self, x):
        x = self.norm(self.conv(x)).relu_()
        return self.head(self.fc(x.flatten(1)).relu())


class WithDropout(AsModules):
    def forward(self, x):
        x = F.relu_(F.dropout(self.norm(self.conv(x)), 0.0))
        return self.head(F.relu(self.fc(x.flatten(1)), inplace=True))


MODELS = [AsModules, lambda: AsModules(inplace=True), AsFunctions, AsMethods, WithDropout]
STATISTIC = {
    ActivationAPoZRankFilterPruner: lambda a: (a != 0).double().mean(dim=1),
    ActivationMeanRankFilterPruner: lambda a: a.mean(dim=1),
}


def activations(model: AsModules, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Every layer's activation as (filters, samples), in float64, written out."""
    twin = copy.deepcopy(model).double()
    first = torch.clamp(twin.norm(twin.conv(x.double())), min=0)
    second = torch.clamp(twin.fc(first.flatten(1)), min=0)
    third = torch.clamp(twin.head(second), min=0)
    return {
        "conv": first.transpose(0, 1).flatten(1).detach(),
        "fc": second.t().detach(),
        "head": third.t().detach(),
    }


@pytest.mark.parametrize("cls", ACTIVATIONS)
@pytest.mark.parametrize("make", MODELS)
def test_the_activation_after_the_norm_is_measured(cls, make):
    model = make()
    pruner = attach(cls, model, statistics_batch_num=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    expected = dict.fromkeys(("conv", "fc", "head"), 0.0)
    for batch in range(2):
        for name, activation in activations(model, images(seed=batch)).items():
            expected[name] = expected[name] + STATISTIC[cls](activation) / 2
        train_step(model, optimizer, images(seed=batch))
    for wrapper in pruner.get_modules_wrapper():
        scores = expected[wrapper.name]
        measured = statistics(pruner)[wrapper.name].double()
        assert torch.allclose(measured, scores, atol=1e-3 if "APoZ" in cls.__name__ else 1e-5)
        assert removed(wrapper) == lowest(measured, len(scores) // 2)


@pytest.mark.parametrize("cls", ACTIVATIONS)
def test_a_layer_called_outside_its_model_is_ranked_by_its_own_output(cls):
    model = AsModules()
    pruner = attach(cls, model)
    x = images()
    output = model.conv(x)
    seen = torch.clamp(output.detach().double(), min=0).transpose(0, 1).flatten(1)
    assert torch.allclose(statistics(pruner)["conv"].double(), STATISTIC[cls](seen), atol=1e-5)


@pytest.mark.parametrize("cls", ACTIVATIONS)
def test_relu6_is_followed_where_it_is_asked_for(cls):
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU6())
    with torch.no_grad():
        model[0].weight.mul_(20)
    pruner = attach(cls, model, activation="relu6")
    x = torch.randn(7, 5)
    expected = torch.clamp(model[0](x), 0, 6).detach().double()
    model(x)
    seen = STATISTIC[cls](expected.t())
    assert torch.allclose(statistics(pruner)["0"].double(), seen, atol=1e-5)


def test_masks_are_made_at_the_next_step_and_watching_ends():
    model = AsModules()
    pruner = attach(ActivationMeanRankFilterPruner, model, statistics_batch_num=2)
    calls = []
    own = pruner.activation_statistic
    pruner.activation_statistic = lambda a: calls.append(1) or own(a)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    counts = []
    for _ in range(5):
        train_step(model, optimizer, images())
        counts.append(len(removed(pruner.get_modules_wrapper()[0])))
    assert counts == [0, 3, 3, 3, 3]
    assert len(calls) == 2 * 3


def test_statistics_begin_anew_with_each_epoch():
    model = AsModules()
    pruner = attach(ActivationMeanRankFilterPruner, model, statistics_batch_num=2)
    model(images())
    pruner.update_epoch(1)
    assert [w.batches for w in pruner.get_modules_wrapper()] == [1, 1, 1], "goes on if incomplete"
    model(images())
    pruner.update_epoch(2)
    assert [w.batches for w in pruner.get_modules_wrapper()] == [0, 0, 0]
    assert not any(w.statistic.any() for w in pruner.get_modules_wrapper())


def test_a_failing_forward_leaves_no_watch_behind():
    model = AsModules()
    attach(ActivationMeanRankFilterPruner, model, statistics_batch_num=5)
    with pytest.raises(RuntimeError):
        model(torch.randn(2, 3, 8, 8))
    assert torch.overrides._get_current_function_mode_stack() == []
    assert model(images()).shape == (6, 4)


def test_a_compiled_forward_is_not_watched_and_that_is_said():
    model = AsModules()
    pruner = attach(ActivationMeanRankFilterPruner, model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with pytest.warns(UserWarning, match='no activation of "conv", "fc", "head" in 1 steps'):
        train_step(compiled, optimizer, images())
    assert removed(pruner.get_modules_wrapper()[0]) == []
    train_step(model, optimizer, images())
    assert len(removed(pruner.get_modules_wrapper()[0])) == 3


def test_a_layer_whose_forward_is_not_called_is_named():
    attention = nn.MultiheadAttention(8, 2)
    attach(ActivationMeanRankFilterPruner, attention)
    optimizer = torch.optim.SGD(attention.parameters(), lr=0.01)
    x = torch.randn(3, 2, 8)
    attention(x, x, x)[0].sum().backward()
    with pytest.warns(UserWarning, match='no activation of "out_proj"'):
        optimizer.step()


def test_two_pruners_may_watch_parts_of_one_model():
    model = AsModules()
    first = ActivationMeanRankFilterPruner(model, [{"sparsity": 0.5, "op_names": ["conv"]}])
    second = ActivationAPoZRankFilterPruner(model, [{"sparsity": 0.5, "op_names": ["fc"]}])
    first.compress()
    second.compress()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    train_step(model, optimizer, images())
    assert len(removed(first.get_modules_wrapper()[0])) == 3
    assert len(removed(second.get_modules_wrapper()[0])) == 4


def test_a_residual_sum_is_measured_where_the_activation_is():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x):
            out = self.conv(x)
            out += x
            return F.relu(out)

    model, x = Residual(), torch.randn(3, 4, 5, 5)
    pruner = attach(ActivationMeanRankFilterPruner, model)
    model(x)
    expected = torch.clamp(model.conv(x) + x, min=0).detach().transpose(0, 1).flatten(1).mean(dim=1)
    assert torch.allclose(statistics(pruner)["conv"], expected, atol=1e-5)
