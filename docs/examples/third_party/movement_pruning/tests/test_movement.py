"""The engine's checks, and what is special about movement pruning."""

import torch
from engine_movement import MovementPruner
from torch import nn

from engine.algorithms import AGPPruner
from engine.testing import PrunerConformance

HALF = [{"sparsity": 0.5, "op_types": ["Linear"]}]


class TestMovementPruner(PrunerConformance):
    plugin = "movement"


def attached(weights, learning_rate=0.1):
    """Return one layer of four weights, its pruner and its optimizer."""
    model = nn.Linear(4, 1, bias=False)
    model.weight.data = torch.tensor([weights])
    optimizer = torch.optim.SGD(model.parameters(), learning_rate)
    pruner = MovementPruner(model, HALF, optimizer)
    pruner.compress()
    return model, pruner, optimizer


def step(model, optimizer, slopes):
    """Take a step of a loss whose gradient with respect to W' is ``slopes``."""
    optimizer.zero_grad()
    (model.weight * torch.tensor([slopes])).sum().backward()
    optimizer.step()


def test_what_moves_towards_zero_goes_however_large():
    model, _, optimizer = attached([3.0, -3.0, 0.5, -0.5])
    # Descent makes 3.0 and -3.0 smaller, 0.5 and -0.5 larger in magnitude.
    step(model, optimizer, [1.0, -1.0, -1.0, 1.0])
    assert (model.weight[0] != 0).tolist() == [False, False, True, True]


def test_scores_are_the_sum_of_minus_gradient_times_weight():
    model, pruner, optimizer = attached([1.0, 2.0, 3.0, 4.0])
    (wrapper,) = pruner.get_modules_wrapper()
    weight = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    mask = torch.ones(4, dtype=torch.float64)
    scores = torch.zeros(4, dtype=torch.float64)
    for slopes in ([1.0, -1.0, 2.0, 0.5], [-2.0, 0.5, 1.0, 1.0], [-1.0, -1.0, 1.0, -9.0]):
        step(model, optimizer, slopes)
        gradient = torch.tensor(slopes, dtype=torch.float64)
        scores -= 0.1 * gradient * weight
        weight -= 0.1 * gradient * mask
        mask = torch.zeros(4, dtype=torch.float64).scatter(0, scores.topk(2).indices, 1)
        assert torch.allclose(wrapper.scores.double(), scores)
        assert torch.allclose(model.weight[0].double(), weight * mask)


def test_what_was_removed_comes_back_with_the_value_that_it_had():
    model, pruner, optimizer = attached([3.0, 2.0, 1.0, 1.0])
    step(model, optimizer, [1.0, 0.0, -1.0, -1.0])
    (wrapper,) = pruner.get_modules_wrapper()
    gone = wrapper.weight[0, 0].item()
    assert model.weight[0, 0] == 0
    step(model, optimizer, [-9.0, 1.0, 1.0, 1.0])
    assert model.weight[0, 0].item() == gone
    assert abs(gone - 2.9) < 1e-6


def test_agp_raises_the_sparsity_and_nothing_goes_before_the_first_gradient():
    model = nn.Linear(10, 1, bias=False)
    entry = {"final_sparsity": 0.8, "end_epoch": 2, "op_types": ["Linear"]}
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    pruner = AGPPruner(model, [entry], optimizer, pruning_algorithm="movement")
    pruner.compress()
    removed = [int((model.weight == 0).sum())]
    for epoch in range(3):
        pruner.update_epoch(epoch)
        optimizer.zero_grad()
        model(torch.randn(5, 10)).square().sum().backward()
        optimizer.step()
        removed.append(int((model.weight == 0).sum()))
    assert removed == [0, 0, 7, 8]
