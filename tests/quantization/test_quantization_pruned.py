"""A pruner and a quantizer on one model, attached and detached in either order."""

import copy

import pytest
import torch
from models import ConvNet, images, mlp, train_step
from torch import nn

from engine import Pruner
from engine.algorithms import (
    BNNQuantizer,
    DoReFaQuantizer,
    LevelPruner,
    LSQQuantizer,
    QAT_Quantizer,
)

QUANTIZERS = {
    "qat": (QAT_Quantizer, 4),
    "lsq": (LSQQuantizer, 4),
    "dorefa": (DoReFaQuantizer, 2),
    "bnn": (BNNQuantizer, 1),
}
PRUNE = [{"sparsity": 0.5, "op_types": ["Linear"]}]


class SoftHalf(Pruner):
    """Masks the smaller half and keeps the dense weights beneath."""

    straight_through = True
    one_shot = True

    def calc_mask(self, wrapper, sparsity):
        size = wrapper.weight.abs()
        return {"weight_mask": size > size.flatten().kthvalue(size.numel() // 2)[0]}


@pytest.fixture(params=QUANTIZERS)
def quantize(request):
    cls, bits = QUANTIZERS[request.param]

    def make(model, optimizer=None):
        entry = {"quant_types": ["weight"], "quant_bits": bits, "op_types": ["Linear"]}
        return cls(model, [entry], optimizer)

    return make


@pytest.fixture(params=["pruner first", "quantizer first"])
def both(request, quantize):
    """Attach both; returns model, optimizer, pruner, quantizer."""

    def make(pruner_class=LevelPruner):
        model = mlp(8, 10, 4)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
        pruner, quantizer = pruner_class(model, PRUNE, optimizer), quantize(model, optimizer)
        order = [pruner, quantizer] if request.param == "pruner first" else [quantizer, pruner]
        for part in order:
            part.compress()
        return model, optimizer, pruner, quantizer

    return make


def is_half_zero(tensor: torch.Tensor) -> bool:
    return int((tensor == 0).sum()) == tensor.numel() // 2


@pytest.mark.parametrize("pruner_class", [LevelPruner, SoftHalf])
def test_masked_weights_are_zero_and_the_others_quantized(both, pruner_class):
    model, optimizer, pruner, _ = both(pruner_class)
    for _ in range(3):
        train_step(model, optimizer, torch.randn(6, 8))
        for wrapper in pruner.get_modules_wrapper():
            weight = wrapper.module.weight
            # DoReFa's and BNN's grids have no zero; QAT's may round more weights to it.
            assert (weight[wrapper.weight_mask == 0] == 0).all()
            assert len(weight.unique()) <= 17
    assert (model[0].weight != 0).any()


@pytest.mark.parametrize("pruner_class", [LevelPruner, SoftHalf])
@pytest.mark.parametrize("first_out", ["pruner", "quantizer"])
def test_they_can_be_detached_in_either_order(both, pruner_class, first_out):
    model, _, pruner, quantizer = both(pruner_class)
    first, second = (pruner, quantizer) if first_out == "pruner" else (quantizer, pruner)
    first.unwrap()
    assert (len(model[0].weight.unique()) <= 17) == (first is pruner)
    if first is quantizer:
        assert is_half_zero(model[0].weight)
    second.unwrap()
    for layer in model.modules():
        assert type(layer) in (nn.Sequential, nn.Linear, nn.ReLU)
        assert not [key for key in vars(layer) if key.startswith("_engine")]


def test_detaching_both_without_training_gives_the_weights_back(both):
    torch.manual_seed(5)
    before = mlp(8, 10, 4).state_dict()
    torch.manual_seed(5)
    model, _, pruner, quantizer = both()
    quantizer.unwrap()
    pruner.unwrap()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_masked_weight_gets_no_gradient_and_the_others_do(both):
    model, _, pruner, _ = both()
    model(torch.rand(4, 8)).square().sum().backward()
    for wrapper in pruner.get_modules_wrapper():
        gradient, mask = wrapper.weight.grad, wrapper.weight_mask
        assert (gradient[mask == 0] == 0).all()
        assert (gradient[mask == 1] != 0).any()


def test_baking_both_keeps_zeros_and_grid(both):
    model, _, pruner, quantizer = both()
    expected = model[0].weight.detach().clone()
    quantizer.unwrap(bake=True)
    pruner.unwrap(bake=True)
    assert torch.equal(model[0].weight, expected)
    assert (model[0].weight == 0).sum() >= expected.numel() // 2


def test_a_copy_of_the_pair_computes_the_same(both):
    model, optimizer, _, _ = both()
    train_step(model, optimizer, torch.randn(6, 8))
    batch = torch.randn(3, 8)
    assert torch.equal(copy.deepcopy(model)(batch), model(batch))


def test_activations_quantized_and_filters_pruned_train_together():
    model = ConvNet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    LevelPruner(model, [{"sparsity": 0.5, "op_types": ["Conv2d"]}], optimizer).compress()
    QAT_Quantizer(
        model,
        [{"quant_types": ["weight", "output"], "quant_bits": 8, "op_types": ["Conv2d"]}],
        optimizer,
    ).compress()
    train_step(model, optimizer, images())
    assert (model.conv2.weight == 0).sum() >= model.conv2.weight.numel() // 2
    assert len(model.conv2(torch.randn(1, 6, 9, 9)).unique()) <= 256
