"""Copies of a quantized model, and what waits for its step in them."""

import copy
import pickle

import pytest
import torch
from models import ConvNet, images, mlp, train_step
from torch import nn

from engine import QuantType, layer_table, load_quantized
from engine.algorithms import LevelPruner, LSQQuantizer, PTQQuantizer, QAT_Quantizer

ENTRY = {"op_types": ["Linear"], "quant_types": ["weight", "input"], "quant_bits": 4}
COPIES = pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))]
)


def delayed(start, model=None):
    model = mlp(8, 6, 3) if model is None else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    quantizer = QAT_Quantizer(model, [{**ENTRY, "quant_start_step": start}], optimizer)
    quantizer.compress()
    return model, optimizer, quantizer


def is_rounded(layer: nn.Module) -> bool:
    return len(layer.weight.unique()) <= 16


@COPIES
def test_a_copy_made_during_the_delay_starts_after_as_many_steps_of_its_own(copied):
    model, optimizer, quantizer = delayed(3)
    train_step(model, optimizer, torch.rand(4, 8))
    other = copied(model)
    batch = torch.rand(4, 8)
    assert torch.equal(other.eval()(batch), model.eval()(batch))
    own = torch.optim.SGD(other.parameters(), lr=0.1)
    seen = []
    for _ in range(4):
        train_step(other.train(), own, torch.rand(4, 8))
        other.eval()
        seen.append((is_rounded(other[0]), is_rounded(other[2])))
    # One step was done before it was copied, two are left.
    assert seen == [(False, False), (True, True), (True, True), (True, True)]
    assert quantizer.steps == 1
    assert not is_rounded(model[0])


def test_the_originals_steps_do_not_count_for_a_copy():
    model, optimizer, _ = delayed(2)
    other = copy.deepcopy(model).eval()
    for _ in range(3):
        train_step(model, optimizer, torch.rand(4, 8))
    assert is_rounded(model[0])
    assert not is_rounded(other[0])


def test_activations_may_wait_while_weights_do_not():
    model, optimizer, quantizer = delayed({"weight": 0, "input": 2})
    rounded = []
    for _ in range(4):
        batch = torch.rand(50, 8)
        seen = quantizer.quantize_input(batch, quantizer.wrappers[0])
        rounded.append((is_rounded(model[0]), len(seen.unique()) <= 16))
        train_step(model, optimizer, batch)
    assert rounded == [(True, False), (True, False), (True, True), (True, True)]


def test_a_restored_delay_goes_on_where_it_was():
    model, optimizer, quantizer = delayed(3)
    early = copy.deepcopy(quantizer.state_dict())
    for _ in range(3):
        train_step(model, optimizer, torch.rand(4, 8))
    assert is_rounded(model[0])
    quantizer.load_state_dict(early)
    assert not is_rounded(model[0])


def test_table_export_and_form_show_the_quantized_weight_during_the_delay(tmp_path):
    model, optimizer, quantizer = delayed(10)
    train_step(model, optimizer, torch.rand(4, 8))
    rows = layer_table(model, quantizer).rows
    assert [row.bytes_after for row in rows] == [48 // 2 + 8, 18 // 2 + 8]
    quantizer.export_model(tmp_path / "model.pth", tmp_path / "calibration.json")
    fresh = load_quantized(mlp(8, 6, 3), tmp_path / "model.pth")
    assert is_rounded(fresh[0])
    form = quantizer.affine_form(quantizer.wrappers[0], QuantType.WEIGHT)
    assert torch.equal(form.values(form.integers(fresh[0].weight)), fresh[0].weight)
    assert not is_rounded(model[0])


@COPIES
@pytest.mark.parametrize("cls", [QAT_Quantizer, LSQQuantizer, PTQQuantizer])
def test_a_copy_can_be_quantized_anew(copied, cls):
    model = mlp(8, 6, 3)
    first = QAT_Quantizer(model, [ENTRY])
    first.compress()
    model(torch.rand(3, 8))
    before = copy.deepcopy(first.state_dict()["wrappers"]["0"]["buffers"])
    other = copied(model)
    entry = {"op_names": ["2"], "quant_types": ["weight"], "quant_bits": 2}
    second = cls(other, [entry])
    second.compress()
    other(torch.rand(3, 8))
    # What copying had left is gone, also where nothing new came.
    assert not is_rounded(other[0])
    assert not other[0]._forward_pre_hooks
    assert len(other[2].weight[0].unique()) <= 4
    second.unwrap()
    assert type(other[0]) is type(other[2]) is nn.Linear
    # The original is untouched.
    assert is_rounded(model[0])
    for name, value in first.state_dict()["wrappers"]["0"]["buffers"].items():
        assert value is None or torch.equal(value, before[name])


@COPIES
@pytest.mark.parametrize("variant", ["fused", "unfused"])
def test_a_copy_with_folded_and_frozen_norms_can_be_quantized_anew(copied, variant):
    model = ConvNet()
    entry = {"op_types": ["Conv2d"], "quant_types": ["weight", "output"], "quant_bits": 4}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    quantizer = QAT_Quantizer(
        model, [entry], optimizer, fold_batch_norm=variant, freeze_norms_step=1
    )
    quantizer.compress()
    train_step(model, optimizer, images())
    other = copied(model)
    torch.testing.assert_close(other.eval()(images()), model.eval()(images()))
    QAT_Quantizer(other, [{**entry, "op_names": ["conv2"]}]).compress()
    other.train()
    other(images())
    assert other.bn1.training
    for layer in (other.conv1, other.bn1):
        assert not layer._forward_hooks
        assert not layer._forward_pre_hooks


def test_a_copy_can_be_pruned():
    model = mlp(8, 6, 3)
    QAT_Quantizer(model, [ENTRY]).compress()
    model(torch.rand(3, 8))
    other = copy.deepcopy(model)
    LevelPruner(other, [{"op_types": ["Linear"], "sparsity": 0.5}]).compress()
    assert (other[0].weight == 0).sum() >= 24
    assert is_rounded(other[0])


def test_a_second_quantizer_on_the_original_is_still_refused():
    model = mlp(8, 6)
    QAT_Quantizer(model, [ENTRY]).compress()
    copy.deepcopy(model)
    with pytest.raises(Exception, match="is already quantized"):
        QAT_Quantizer(model, [ENTRY]).compress()


def test_a_compiled_model_is_compiled_once_for_the_delay_and_once_behind_it():
    model, optimizer, _ = delayed(4)
    graphs = []

    def counting(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model, backend=counting, fullgraph=True)
    for _ in range(12):
        train_step(compiled, optimizer, torch.rand(4, 8))
    assert is_rounded(model[0])
    # Each may be traced twice: before and behind the first range.
    assert len(graphs) <= 4
