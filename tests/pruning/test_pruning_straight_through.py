"""Soft masks: dense weights beneath, the mask's own gradient, and zeros wherever a model leaves."""

import pytest
import torch
from models import ConvNet, images, mlp
from torch import nn

import engine
from engine import PluginError
from engine.algorithms import AGPPruner, L1FilterPruner, LevelPruner

HALF = [{"sparsity": 0.5, "op_types": ["default"]}]


class Soft(LevelPruner):
    straight_through = True


class SoftFilters(L1FilterPruner):
    straight_through = True


def test_the_masks_gradient_is_that_of_a_mask_which_autograd_sees():
    model = nn.Linear(5, 4)
    pruner = Soft(model, HALF)
    pruner.compress()
    (wrapper,) = pruner.get_modules_wrapper()
    mask = wrapper.weight_mask.double().requires_grad_()
    weight, bias = wrapper.weight.detach().double(), model.bias.detach().double()
    x = torch.randn(3, 5)
    # Twice, so that gradients are accumulated.
    for scale in (1.0, 2.0):
        model(scale * x).square().sum().backward()
        expected = nn.functional.linear(scale * x.double(), weight * mask, bias).square().sum()
        expected.backward()
    found = pruner.mask_gradient(wrapper)
    assert torch.allclose(found.double(), mask.grad, rtol=1e-5)
    assert bool(found[wrapper.weight_mask == 0].any()), "also where the weight is removed"


def test_without_a_loss_there_is_no_gradient_of_the_mask():
    pruner = Soft(nn.Linear(5, 4), HALF)
    pruner.compress()
    assert pruner.mask_gradient(pruner.get_modules_wrapper()[0]) is None


def test_the_gradient_of_a_mask_that_is_applied_in_place_is_refused():
    pruner = LevelPruner(nn.Linear(5, 4), HALF)
    pruner.compress()
    with pytest.raises(PluginError) as caught:
        pruner.mask_gradient(pruner.get_modules_wrapper()[0])
    assert str(caught.value) == (
        "level (engine 0.1.0) asks for the gradient of a mask that is applied in place\n"
        "  set straight_through = True in the class: then the weights beneath it stay"
    )


def test_a_weight_comes_back_with_the_value_that_it_had():
    class Alternates(Soft):
        one_shot = False
        turn = 0

        def calc_mask(self, wrapper, sparsity):
            self.turn += 1
            mask = torch.zeros_like(wrapper.weight)
            mask[:, self.turn % 2 :: 2] = 1
            return {"weight_mask": mask}

    model = nn.Linear(4, 2, bias=False)
    dense = model.weight.detach().clone()
    pruner = Alternates(model, HALF)
    pruner.compress()
    assert not model.weight[:, ::2].any()
    pruner.update_masks()
    assert torch.equal(model.weight[:, ::2], dense[:, ::2])
    assert not model.weight[:, 1::2].any()


def test_a_bias_that_is_masked_is_zero():
    class MasksBias(Soft):
        def calc_mask(self, wrapper, sparsity):
            masks = super().calc_mask(wrapper, sparsity)
            return {**masks, "bias_mask": torch.tensor([0.0, 1.0, 0.0])}

    model = nn.Linear(4, 3)
    bias = model.bias.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    pruner = MasksBias(model, HALF, optimizer)
    pruner.compress()
    assert torch.equal(model.bias != 0, torch.tensor([False, True, False]))
    pruner.unwrap()
    assert torch.equal(model.bias, bias), "nothing was trained: it is put back"
    pruner.compress()
    model(torch.randn(2, 4)).sum().backward()
    optimizer.step()
    assert torch.equal(model.bias != 0, torch.tensor([False, True, False]))


@pytest.mark.parametrize("cls", [SoftFilters, L1FilterPruner])
@pytest.mark.parametrize("dependency_aware", [False, True])
def test_speedup_bakes_soft_masks(cls, dependency_aware):
    torch.manual_seed(0)
    model = ConvNet().double()
    x = images().double()
    pruner = cls(model, HALF, dependency_aware=dependency_aware, dummy_input=x)
    pruner.compress()
    with torch.no_grad():
        expected = model.eval()(x)
    before = sum(p.numel() for p in model.parameters())
    smaller = pruner.apply_speedup(x)
    with torch.no_grad():
        assert torch.allclose(smaller(x), expected, rtol=1e-9, atol=1e-10)
    assert sum(p.numel() for p in smaller.parameters()) < before
    assert all("_engine" not in key for m in smaller.modules() for key in vars(m))


def test_a_speedup_that_fails_gives_the_dense_weights_back(monkeypatch):
    model = mlp(6, 5, 4)
    dense = model[0].weight.detach().clone()
    pruner = SoftFilters(model, [{"sparsity": 0.5, "op_names": ["0"]}])
    pruner.compress()
    masked = model[0].weight.detach().clone()

    def fails(*args, **kwargs):
        raise engine.EngineError("not today")

    monkeypatch.setattr("engine.speedup.speedup", fails)
    with pytest.raises(engine.EngineError, match="not today"):
        pruner.apply_speedup(torch.randn(2, 6))
    assert torch.equal(pruner.get_modules_wrapper()[0].weight, dense)
    assert torch.equal(model[0].weight, masked)


@pytest.mark.parametrize("bake", [False, True])
def test_unwrap_gives_dense_weights_or_baked_ones(bake):
    model = mlp(6, 5)
    dense = model[0].weight.detach().clone()
    pruner = Soft(model, HALF)
    pruner.compress()
    mask = pruner.get_modules_wrapper()[0].weight_mask
    pruner.unwrap(bake=bake)
    assert torch.equal(model[0].weight, dense * mask if bake else dense)


def test_a_schedule_around_it_is_soft_too():
    model = nn.Linear(10, 2)
    entry = {"final_sparsity": 0.8, "end_epoch": 2, "op_types": ["Linear"]}
    pruner = AGPPruner(model, [entry], pruning_algorithm=Soft)
    pruner.compress()
    pruner.update_epoch(2)
    pruner.update_masks()
    (wrapper,) = pruner.get_modules_wrapper()
    assert int((model.weight == 0).sum()) == 16
    assert int((wrapper.weight == 0).sum()) == 0
    model(torch.randn(3, 10)).sum().backward()
    assert pruner.mask_gradient(wrapper) is not None
