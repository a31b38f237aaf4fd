"""The table of layers, on models small enough to count by hand."""

import json

import pytest
import torch
from models import TiedLanguageModel, mlp
from torch import nn

from engine import ExportError, Quantizer, layer_table
from engine.algorithms import DoReFaQuantizer, LevelPruner, QAT_Quantizer


def entry(*kinds, bits=8, **selection):
    return [{"quant_types": list(kinds), "quant_bits": bits, **selection}]


def test_a_plain_model_has_its_weights_in_full():
    table = layer_table(mlp(8, 10, 4))
    first, second = table.rows
    assert (first.name, first.type, first.shape) == ("0", "Linear", (10, 8))
    assert (first.kept, first.total) == (80, 80)
    assert (first.weight_bits, first.activation_bits) == (32, 32)
    assert (first.bytes_before, first.bytes_after) == (320, 320)
    assert second.bytes_before == 160
    assert table.other_bytes == 4 * (10 + 4)
    assert table.bytes_before == table.bytes_after == 320 + 160 + 56


def test_a_mask_alone_removes_weights_and_no_bytes():
    model = mlp(8, 10, 4)
    pruner = LevelPruner(model, [{"sparsity": 0.25, "op_types": ["Linear"]}])
    pruner.compress()
    table = layer_table(model, pruner)
    assert [(row.kept, row.total) for row in table.rows] == [(60, 80), (30, 40)]
    assert table.bytes_after == table.bytes_before


def test_a_quantized_weight_counts_its_bits_and_its_grid():
    model = mlp(8, 10, 4)
    quantizer = QAT_Quantizer(
        model, entry("weight", "output", bits={"weight": 4, "output": 6}, op_names=["0"])
    )
    quantizer.compress()
    first, second = layer_table(model, quantizer).rows
    assert (first.weight_bits, first.activation_bits) == (4, 6)
    # 80 codes of half a byte, a scale and a zero point.
    assert (first.bytes_before, first.bytes_after) == (320, 40 + 8)
    assert (second.weight_bits, second.activation_bits, second.bytes_after) == (32, 32, 160)


def test_what_rounds_to_zero_is_not_pruned():
    model = mlp(8, 10, 4)
    with torch.no_grad():
        model[0].weight[:, 1:] *= 0.01
    pruner = LevelPruner(model, [{"sparsity": 0.25, "op_names": ["2"]}])
    pruner.compress()
    quantizer = QAT_Quantizer(model, entry("weight", bits=4, op_types=["Linear"]))
    quantizer.compress()
    assert (model[0].weight == 0).sum() >= 60
    first, second = layer_table(model, pruner, quantizer).rows
    assert first.kept == 80
    assert second.kept == 30


def test_pruned_and_quantized_counts_what_is_left():
    model = mlp(8, 10)
    pruner = LevelPruner(model, [{"sparsity": 0.75, "op_types": ["Linear"]}])
    quantizer = DoReFaQuantizer(model, entry("weight", bits=2, op_types=["Linear"]))
    pruner.compress()
    quantizer.compress()
    (row,) = layer_table(model, pruner, quantizer).rows
    assert (row.kept, row.total) == (20, 80)
    # One bit for each of 80, two for each of 20, and four values of the table at most.
    table = 4 * len(model[0].weight[model[0].weight != 0].unique())
    assert row.bytes_after == 10 + 5 + table


def test_activations_alone_leave_the_weight_as_it_is():
    model = mlp(8, 10)
    quantizer = QAT_Quantizer(model, entry("input", "output", bits=8, op_types=["Linear"]))
    quantizer.compress()
    (row,) = layer_table(model, quantizer).rows
    assert (row.weight_bits, row.activation_bits) == (32, 8)
    assert row.bytes_after == row.bytes_before


def test_half_precision_has_sixteen_bits():
    (row,) = layer_table(mlp(8, 10).half()).rows
    assert (row.weight_bits, row.bytes_before) == (16, 160)


def test_norms_without_a_quantized_weight_and_the_root_module_are_rows():
    rows = layer_table(nn.Sequential(nn.BatchNorm2d(3), nn.ReLU())).rows
    assert [(row.name, row.type, row.total) for row in rows] == [("0", "BatchNorm2d", 3)]
    (row,) = layer_table(nn.Linear(2, 3)).rows
    assert row.name == ""


def test_a_shared_weight_is_counted_once_at_its_first_layer():
    model = TiedLanguageModel()
    table = layer_table(model)
    assert [row.name for row in table.rows] == ["embedding", "hidden"]
    assert table.bytes_before == sum(p.numel() * 4 for p in model.parameters())


def test_state_that_is_no_tensor_counts_nothing():
    class Remembering(nn.Linear):
        def get_extra_state(self):
            return {"epoch": 3}

        def set_extra_state(self, state):
            pass

    assert layer_table(Remembering(2, 3)).other_bytes == 12


def test_the_text_is_plain_aligned_columns():
    model = mlp(8, 10, 4)
    quantizer = QAT_Quantizer(model, entry("weight", bits=8, op_names=["0"]))
    quantizer.compress()
    assert str(layer_table(model, quantizer)) == "\n".join(
        [
            "LAYER  TYPE    SHAPE  KEPT/TOTAL  PRUNED  BITS W/A  BYTES  NOW",
            "0      Linear  10x8        80/80    0.0%      8/32    320   88",
            "2      Linear  4x10        40/40    0.0%     32/32    160  160",
            "total                    120/120    0.0%              536  304",
        ]
    )


def test_a_large_model_is_counted_in_kilobytes():
    model = nn.Sequential(nn.Linear(1000, 1200), nn.Linear(10, 10, bias=False))
    lines = str(layer_table(model)).splitlines()
    assert lines[0].split()[-2:] == ["kB", "NOW"]
    assert lines[1].split()[-2:] == ["4,800.0", "4,800.0"]
    assert lines[2].split()[-2:] == ["0.4", "0.4"]
    assert lines[3].split()[-2:] == ["4,805.2", "4,805.2"]


def test_no_line_is_wider_than_a_hundred_characters():
    class TheNameOfALayerThatWasGivenByACommittee(nn.Linear):
        pass

    inner = model = nn.Sequential()
    for name in ("encoder_decoder", "the_second_of_the_layers", "self_attention", "projection"):
        inner.add_module(name, nn.Sequential())
        inner = getattr(inner, name)
    inner.add_module("query", TheNameOfALayerThatWasGivenByACommittee(1000, 1200))
    inner.add_module("conv", nn.Conv3d(100, 120, 3))
    text = str(layer_table(model))
    assert max(map(len, text.splitlines())) <= 100
    # What tells layers apart is the end of their names.
    assert "projection.query  ..mittee  1200x1000  " in text
    assert "projection.conv " in text
    assert "1,200,000/1,200,000" in text


def test_the_rows_are_json():
    rows = json.loads(json.dumps(layer_table(mlp(8, 10)).as_dicts()))
    assert rows == [
        {
            "name": "0",
            "type": "Linear",
            "shape": [10, 8],
            "kept": 80,
            "total": 80,
            "weight_bits": 32,
            "activation_bits": 32,
            "bytes_before": 320,
            "bytes_after": 320,
        }
    ]


def test_a_weight_that_is_not_quantized_yet_is_named():
    class Scaling(Quantizer):
        def quantize_weight(self, weight):
            return weight * 0.999

    model = mlp(8, 10)
    quantizer = Scaling(model, entry("weight", bits=2, op_types=["Linear"]))
    quantizer.compress()
    with pytest.raises(ExportError, match='layer "0": the weight has 80 different values'):
        layer_table(model, quantizer)


def test_the_table_leaves_the_model_as_it_is():
    model = mlp(8, 10)
    quantizer = QAT_Quantizer(model, entry("weight", "input", op_types=["Linear"]))
    quantizer.compress()
    model(torch.rand(2, 8)).sum().backward()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    layer_table(model, quantizer)
    assert model.training
    assert model[0]._parameters["weight"].grad is not None
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
