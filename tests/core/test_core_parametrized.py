"""Weights that PyTorch's parametrizations compute: what reads weights works on them, exactly."""

import copy

import pytest
import torch
from models import mlp
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import engine
from engine.algorithms import (
    AGPPruner,
    DoReFaQuantizer,
    L1FilterPruner,
    LevelPruner,
    LSQQuantizer,
    NaiveQuantizer,
    PTQQuantizer,
    QAT_Quantizer,
    SensitivityPruner,
    TaylorFOWeightFilterPruner,
)

KINDS = [
    parametrizations.weight_norm,
    parametrizations.spectral_norm,
    parametrizations.orthogonal,
]
HALF = {"op_types": ["Linear"], "sparsity": 0.5}
FOUR = {"op_types": ["Linear"], "quant_types": ["weight"], "quant_bits": 4}
SIZES = (8, 12, 6, 4)


def net(kind):
    torch.manual_seed(0)
    model = mlp(*SIZES)
    kind(model[0])
    kind(model[2])
    return model


def batch(seed=0):
    return torch.randn(5, 8, generator=torch.Generator().manual_seed(seed))


def train(model, optimizer, steps=3):
    for seed in range(steps):
        optimizer.zero_grad()
        model(batch(seed)).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("kind", KINDS)
def test_a_masked_step_is_that_of_a_masked_parametrization(kind):
    """The reference puts the mask at the end of the user's own parametrizations."""
    model = net(kind)
    reference, keys = copy.deepcopy(model), list(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    pruner = LevelPruner(model, [HALF], optimizer)
    pruner.compress()
    assert list(model.state_dict()) == keys

    class Masked(nn.Module):
        def __init__(self, mask):
            super().__init__()
            self.mask = mask

        def forward(self, weight):
            return weight * self.mask

    masks = {w.name: w.weight_mask.clone() for w in pruner.get_modules_wrapper()}
    for name, mask in masks.items():
        layer = reference.get_submodule(name)
        parametrize.register_parametrization(layer, "weight", Masked(mask), unsafe=True)
    train(model, optimizer)
    train(reference, torch.optim.SGD(reference.parameters(), lr=0.1, momentum=0.9))
    for name, mask in masks.items():
        weight = model.get_submodule(name).weight
        assert not weight[mask == 0].any()
        assert (mask == 0).sum() == mask.numel() // 2
        assert torch.allclose(weight, reference.get_submodule(name).weight, atol=1e-5)


def test_clipping_sees_what_is_left():
    dense = net(parametrizations.weight_norm)
    model = copy.deepcopy(dense)
    LevelPruner(model, [HALF]).compress()
    model(batch()).square().mean().backward()
    v = model[0].parametrizations.weight.original1
    assert v.grad is not None
    assert v.grad.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cls", [LevelPruner, L1FilterPruner])
def test_unwrap_export_and_bake(kind, cls, tmp_path):
    model = net(kind)
    before = copy.deepcopy(model.state_dict())
    classes = [type(layer) for layer in model]
    pruner = cls(model, [HALF])
    pruner.compress()
    assert [type(layer) for layer in pruner.unwrap()] == classes
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    pruner = cls(model, [HALF])
    pruner.compress()
    train(model, torch.optim.SGD(model.parameters(), lr=0.1))
    model.eval()
    pruner.export_model(tmp_path / "m.pth", tmp_path / "masks.pth")
    plain = mlp(*SIZES)
    plain.load_state_dict(torch.load(tmp_path / "m.pth", weights_only=True))
    for ours, theirs in zip(model[::2], plain[::2], strict=True):
        assert torch.equal(ours.weight, theirs.weight)
        assert (theirs.weight == 0).sum() == theirs.weight.numel() // 2
    assert torch.allclose(model(batch()), plain(batch()), atol=1e-6)
    engine.apply_masks(plain, tmp_path / "masks.pth")
    output = model(batch())
    with pytest.raises(engine.EngineError, match=r"parametrize\n  unwrap\(bake=True\) makes"):
        pruner.apply_speedup(batch())
    assert pruner.unwrap(bake=True) is model
    assert all(type(layer) is nn.Linear for layer in model[::2])
    assert list(model.state_dict()) == list(plain.state_dict())
    assert torch.allclose(model(batch()), output, atol=1e-6)
    if cls is L1FilterPruner:
        engine.speedup.speedup(model, batch())
        assert torch.allclose(model(batch()), output, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cls", [QAT_Quantizer, LSQQuantizer, NaiveQuantizer, DoReFaQuantizer])
def test_quantizers(kind, cls, tmp_path):
    model = net(kind)
    keys = list(model.state_dict())
    quantizer = cls(model, [FOUR])
    quantizer.compress()
    train(model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert list(model.state_dict()) == keys
    model.eval()
    assert len(torch.unique(model[0].weight)) <= 16
    quantizer.export_model(tmp_path / "q.pth", tmp_path / "q.json")
    plain = mlp(*SIZES)
    engine.load_quantized(plain, tmp_path / "q.pth")
    assert torch.equal(model[0].weight + 0.0, plain[0].weight)
    assert torch.allclose(model(batch()), plain(batch()), atol=1e-6)
    assert [row.weight_bits for row in engine.layer_table(model, quantizer).rows] == [4, 4, 4]
    with pytest.raises(engine.ExportError, match="made of plain weights, and the weight of layer"):
        quantizer.export_model(tmp_path / "r.pth", None, tmp_path / "r.onnx", [2, 8])
    output = model(batch())
    quantizer.unwrap(bake=True)
    assert type(model[0]) is nn.Linear
    assert torch.allclose(model(batch()), output, atol=1e-6)


def test_pruned_and_quantized_in_both_orders():
    for first, second in ((LevelPruner, NaiveQuantizer), (NaiveQuantizer, LevelPruner)):
        model = net(parametrizations.weight_norm)
        entries = {LevelPruner: HALF, NaiveQuantizer: FOUR}
        both = {cls: cls(model, [entries[cls]]) for cls in (first, second)}
        for cls in (first, second):
            both[cls].compress()
        assert (model[0].weight == 0).sum() >= 48
        assert len(torch.unique(model[0].weight)) <= 16
        both[NaiveQuantizer].unwrap()
        assert (model[0].weight == 0).sum() == 48
        both[LevelPruner].unwrap(bake=True)
        assert (model[0].weight == 0).sum() == 48


def test_schedules_states_and_compiled_models():
    model = net(parametrizations.weight_norm)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    entry = {"op_types": ["Linear"], "final_sparsity": 0.75, "end_epoch": 2}
    pruner = AGPPruner(model, [entry], optimizer)
    pruner.compress()
    for epoch in range(3):
        pruner.update_epoch(epoch)
        train(model, optimizer, 1)
    assert (model[0].weight == 0).sum() == 72
    compiled = torch.compile(model, backend="aot_eager")
    assert torch.allclose(compiled(batch()), model(batch()), atol=1e-6)
    fresh = net(parametrizations.weight_norm)
    resumed = AGPPruner(fresh, [entry])
    resumed.compress()
    resumed.load_model_state_dict(model.state_dict())
    resumed.load_state_dict(pruner.state_dict())
    assert torch.equal(fresh[0].weight, model[0].weight)
    twin = copy.deepcopy(model)
    assert torch.equal(twin[0].weight, model[0].weight)


@pytest.mark.parametrize(
    ("cls", "entry"),
    [
        (TaylorFOWeightFilterPruner, HALF),
        (SensitivityPruner, HALF),
        (PTQQuantizer, FOUR),
    ],
)
def test_what_needs_a_plain_weight_says_what_makes_one(cls, entry):
    with pytest.raises(engine.ConfigError, match=r"remove_parametrizations\(layer, .weight.\)"):
        cls(net(parametrizations.weight_norm), [entry])


def test_constraints_over_filters_say_so_too():
    model = net(parametrizations.weight_norm)
    pruner = L1FilterPruner(model, [HALF], dependency_aware=True, dummy_input=batch())
    with pytest.raises(engine.EngineError, match="computed by torch"):
        pruner.compress()
