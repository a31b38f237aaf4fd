"""Loops in which more than one optimizer steps, or a forward pass runs twice."""

import copy
import itertools

import pytest
import torch
from models import train_step
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

import engine
from engine.algorithms import (
    ActivationAPoZRankFilterPruner,
    AGPPruner,
    LevelPruner,
    LSQQuantizer,
    QAT_Quantizer,
)

HALF = [{"op_types": ["Linear"], "sparsity": 0.5}]
QUANTIZED = [{"op_types": ["Linear"], "quant_types": ["weight", "input"], "quant_bits": 4}]


def network(*sizes):
    torch.manual_seed(0)
    layers = [m for a, b in itertools.pairwise(sizes) for m in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def share_of_zeros(model):
    return [float((m.weight == 0).float().mean()) for m in model if isinstance(m, nn.Linear)]


class Adversaries(nn.Module):
    """A generator and a discriminator in one module, each with its optimizer."""

    def __init__(self):
        super().__init__()
        self.generator, self.discriminator = network(3, 8, 4), network(4, 8, 1)


@pytest.mark.parametrize("schedule", [False, True])
def test_a_step_leaves_what_another_optimizer_trains_alone(schedule):
    model = Adversaries()
    first = torch.optim.Adam(model.discriminator.parameters(), 0.05)
    second = torch.optim.Adam(model.generator.parameters(), 0.05)
    entry = {"op_types": ["Linear"], "final_sparsity": 0.5, "end_epoch": 1}
    pruner = AGPPruner(model, [entry]) if schedule else LevelPruner(model, HALF)
    pruner.compress()
    for epoch in range(3):
        pruner.update_epoch(epoch)
        for _ in range(2):
            fake = model.generator(torch.randn(8, 3))
            real = torch.randn(8, 4)
            loss = model.discriminator(fake.detach()).mean() - model.discriminator(real).mean()
            first.zero_grad()
            loss.backward()
            first.step()
            second.zero_grad()
            model.discriminator(fake).mean().neg().backward()  # through the generator's old graph
            second.step()
    shares = share_of_zeros(model.generator) + share_of_zeros(model.discriminator)
    assert min(shares) >= 0.5


def test_optimizers_that_step_within_backward():
    model = network(6, 16, 16, 2)
    steppers = {p: torch.optim.SGD([p], 0.1, momentum=0.9) for p in model.parameters()}

    def step(parameter):
        steppers[parameter].step()
        steppers[parameter].zero_grad()

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(step)
    pruner = AGPPruner(model, [{"op_types": ["Linear"], "final_sparsity": 0.75, "end_epoch": 2}])
    pruner.compress()
    for epoch in range(4):
        pruner.update_epoch(epoch)
        model(torch.randn(8, 6)).square().mean().backward()
        for wrapper in pruner.get_modules_wrapper():
            assert torch.equal(wrapper.weight, wrapper.weight * wrapper.weight_mask)
    assert min(share_of_zeros(model)) >= 0.74


def recomputed(model, x, reentrant):
    """Return the output, computed again in backward."""
    x = x.clone().requires_grad_()  # a reentrant one needs an input with a gradient
    return checkpoint(model, x, use_reentrant=reentrant)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("device_path", [False, True])
def test_ranges_move_once_for_a_batch_that_is_recomputed(reentrant, device_path, monkeypatch):
    if device_path:  # the bookkeeping on tensors, which a GPU has
        monkeypatch.setattr("engine.quantization.grid.can_share", lambda tensor: False)
    states = []
    for run in (lambda model, x: recomputed(model, x, reentrant), lambda model, x: model(x)):
        model = network(6, 8, 4)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        quantizer = QAT_Quantizer(model, QUANTIZED, optimizer)
        quantizer.compress()
        torch.manual_seed(1)
        for batch in range(4):
            optimizer.zero_grad()
            run(model, (1 + batch) * torch.randn(8, 6)).square().mean().backward()
            optimizer.step()
        states.append([w.input_range for w in quantizer.get_modules_wrapper()])
    for again, once in zip(*states, strict=True):
        assert torch.equal(again, once)


@pytest.mark.parametrize("reentrant", [False, True])
def test_learned_steps_are_those_of_a_loop_without_recomputation(reentrant):
    found = []
    for run in (lambda model, x: recomputed(model, x, reentrant), lambda model, x: model(x)):
        model = network(6, 8, 4)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        quantizer = LSQQuantizer(model, QUANTIZED, optimizer)
        quantizer.compress()
        torch.manual_seed(1)
        for _ in range(3):
            optimizer.zero_grad()
            run(model, torch.randn(8, 6)).square().mean().backward()
            optimizer.step()
        found.append([p.detach().clone() for p in quantizer.learned_parameters()])
    for again, once in zip(*found, strict=True):
        torch.testing.assert_close(again, once)


def test_activations_of_a_recomputed_batch_count_once():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
    entry = [{"op_types": ["Conv2d"], "sparsity": 0.5}]
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    pruner = ActivationAPoZRankFilterPruner(model, entry, optimizer, statistics_batch_num=3)
    pruner.compress()
    seen = []
    pruner.add_activation_collector(lambda wrapper, args, output: seen.append(len(output)))
    masks = []
    for _ in range(3):
        optimizer.zero_grad()
        recomputed(model, torch.randn(8, 1, 6, 6), False).square().mean().backward()
        optimizer.step()
        mask = pruner.get_modules_wrapper()[0].weight_mask
        masks.append(mask is not None and bool((mask == 0).any()))
    assert seen == [8, 8, 8]
    assert masks == [False, False, True], "three batches, not two forward passes of one and a half"


COPIES = {"deepcopy": copy.deepcopy, "average": AveragedModel}


@pytest.mark.parametrize("quantizer", [QAT_Quantizer, LSQQuantizer])
@pytest.mark.parametrize("make", COPIES.values(), ids=COPIES)
def test_a_copy_that_is_only_evaluated_is_quantized_as_the_model_is(quantizer, make):
    model = network(6, 8, 4)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    quantizer(model, QUANTIZED, optimizer).compress()
    copied = make(model)
    for _ in range(3):
        train_step(model, optimizer, torch.randn(16, 6))
    inner = getattr(copied, "module", copied)
    inner.load_state_dict(model.state_dict())
    x = torch.randn(32, 6)
    assert torch.equal(copied.eval()(x), model.eval()(x))
    again = copy.deepcopy(copied)
    assert torch.equal(again(x), model(x)), "a copy of a copy, too"


def test_a_copy_that_is_trained_has_ranges_of_its_own():
    model = network(6, 8, 4)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    quantizer = QAT_Quantizer(model, QUANTIZED, optimizer)
    quantizer.compress()
    copied = copy.deepcopy(model)
    train_step(model, optimizer, torch.randn(16, 6))
    copied.train()(100 * torch.randn(16, 6))
    x = 100 * torch.randn(16, 6)
    own = quantizer.get_modules_wrapper()[0].input_range.clone()
    assert (copied.eval()(x) - model.eval()(x)).abs().max() > 1
    assert torch.equal(quantizer.get_modules_wrapper()[0].input_range, own)
    assert engine.layer_table(model, quantizer)
