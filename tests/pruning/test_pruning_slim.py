"""Network slimming: the penalty, the global ranking, no layer lost."""

import pytest
import torch
from models import ConvNet, images, train_step, zeros
from torch import nn

from engine.algorithms import SlimPruner


def norms(*gammas) -> nn.Sequential:
    layers = [nn.BatchNorm1d(len(gamma)) for gamma in gammas]
    with torch.no_grad():
        for layer, gamma in zip(layers, gammas, strict=True):
            layer.weight.copy_(torch.tensor(gamma))
            layer.bias.fill_(1.0)
    return nn.Sequential(*layers)


def slim(model, sparsity, **arguments):
    pruner = SlimPruner(model, [{"sparsity": sparsity, "op_types": ["default"]}], **arguments)
    pruner.compress()
    return pruner


def removed(pruner) -> list[list[int]]:
    return [
        (wrapper.weight_mask == 0).nonzero().flatten().tolist()
        for wrapper in pruner.get_modules_wrapper()
    ]


@pytest.mark.parametrize(("sparsity", "expected"), [(0.2, [0]), (0.6, [0, 1, 2])])
def test_nni_ground_truth(sparsity, expected):
    model = norms([0.0, 1.0, 2.0, 3.0, 4.0], [-0.0, -1.0, -2.0, -3.0, -4.0])
    pruner = slim(model, sparsity)
    assert removed(pruner) == [expected, expected]
    for wrapper in pruner.get_modules_wrapper():
        assert torch.equal(wrapper.weight_mask, wrapper.bias_mask)
        assert zeros(wrapper.bias) == len(expected)


def test_the_ranking_is_global():
    pruner = slim(norms([5.0, 6.0, 7.0, 8.0], [1.0, 2.0, 3.0, 9.0]), 0.5)
    assert removed(pruner) == [[0], [0, 1, 2]]


def test_no_layer_loses_its_strongest_channel_and_the_count_stays_exact():
    pruner = slim(norms([0.1, 0.3, 0.2], [5.0, 6.0, 7.0]), 0.6)
    assert removed(pruner) == [[0, 2], [0]]


def test_as_much_as_possible_where_every_layer_keeps_one():
    pruner = slim(norms([0.1, 0.3], [5.0, 6.0]), 0.9)
    assert removed(pruner) == [[0], [0]]


def test_ties_do_not_overshoot():
    pruner = slim(norms([1.0] * 5, [1.0] * 5), 0.3)
    assert sum(map(len, removed(pruner))) == 3


def test_entries_of_different_sparsity_are_ranked_apart():
    model = norms([1.0, 2.0, 3.0, 4.0], [10.0, 20.0, 30.0, 40.0])
    pruner = SlimPruner(
        model,
        [
            {"sparsity": 0.5, "op_types": ["default"]},
            {"sparsity": 0.25, "op_names": ["1"]},
        ],
    )
    pruner.compress()
    assert removed(pruner) == [[0, 1], [0]]


def test_the_penalty_is_lambda_times_the_sign_until_masks_are_made():
    model = ConvNet()
    with torch.no_grad():
        model.bn1.weight.copy_(torch.tensor([1.0, -1.0, 0.0, 2.0, -2.0, 0.5]))
    twin = ConvNet()
    twin.load_state_dict(model.state_dict())
    pruner = slim(model, 0.5, regular_scale=0.25, training_epochs=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    bare = torch.optim.SGD(twin.parameters(), lr=0.1)
    for epoch in range(2):
        pruner.update_epoch(epoch)
        expected = torch.sign(model.bn1.weight.detach().double())
        train_step(model, optimizer, images())
        train_step(twin, bare, images())
        penalty = model.bn1.weight.grad.double() - twin.bn1.weight.grad.double()
        assert torch.allclose(penalty, 0.25 * expected, atol=1e-6)
        assert torch.equal(model.fc.weight.grad, twin.fc.weight.grad)
        twin.load_state_dict(model.state_dict())
        assert removed(pruner) == [[], []]
    pruner.update_epoch(2)
    train_step(model, optimizer, images())
    assert sum(map(len, removed(pruner))) == 8
    twin.load_state_dict(model.state_dict())
    train_step(model, optimizer, images())
    train_step(twin, bare, images())
    assert torch.equal(model.bn1.weight.grad, twin.bn1.weight.grad)


def test_the_penalty_drives_scales_towards_zero():
    model = ConvNet()
    pruner = slim(model, 0.5, regular_scale=1.0, training_epochs=1)
    optimizer = torch.optim.SGD([model.bn2.weight], lr=0.1)
    pruner.update_epoch(0)
    for _ in range(5):
        model.bn2.weight.grad = torch.zeros(10)
        optimizer.step()
    assert torch.allclose(model.bn2.weight, torch.full((10,), 0.5))


def test_masked_scales_are_exactly_zero_after_each_step():
    model = ConvNet()
    pruner = slim(model, 0.5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(3):
        train_step(model, optimizer, images())
        for wrapper in pruner.get_modules_wrapper():
            assert not wrapper.weight[wrapper.weight_mask == 0].any()
            assert not wrapper.bias[wrapper.bias_mask == 0].any()
