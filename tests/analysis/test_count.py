"""Counts of a model: totals, masks, files; and the model is as it was."""

from __future__ import annotations

import copy
import csv
import json

import pytest
import torch
from models import ConvNet, TiedLanguageModel, images
from nets import Residual
from torch import Tensor, nn

from engine import CheckpointError, EngineError
from engine.algorithms import L1FilterPruner, LevelPruner
from engine.analysis import count_flops_params, speedup_table

X = (2, 3, 8, 8)


def test_it_unpacks_as_operations_parameters_and_layers() -> None:
    model = ConvNet()
    flops, params, layers = count_flops_params(model, images(1))
    assert params == sum(p.numel() for p in model.parameters())
    # conv1: 6 filters of 9 at 64 places; conv2: 10 of 54 at 9; fc: 90 x 4.
    assert flops == 2 * (6 * 9 * 64 + 10 * 54 * 9 + 360)
    assert [layer.name for layer in layers] == ["conv1", "bn1", "conv2", "bn2", "fc"]
    assert layers[2].weight_shape == (10, 6, 3, 3)
    assert layers[2].output_shape == (1, 10, 3, 3)


def test_shared_parameters_count_once() -> None:
    model = TiedLanguageModel()
    count = count_flops_params(model, torch.tensor([[1, 2, 3]]))
    assert count.params == sum(p.numel() for p in model.parameters()) == 12 * 6 + 42 + 12
    assert count.flops == 2 * 3 * (36 + 72)


def test_the_masked_count_sees_the_zeros_of_a_pruner() -> None:
    model = Residual()
    dense = count_flops_params(model, X)
    pruner = L1FilterPruner(model, [{"sparsity": 0.5, "op_names": ["a"]}])
    pruner.compress()
    masked = count_flops_params(model, X)
    assert (masked.flops, masked.params) == (dense.flops, dense.params)
    # Three of the six filters of a, with their biases; b still reads all of them.
    assert dense.masked_flops - masked.masked_flops == 2 * 2 * 64 * 3 * 72
    assert dense.nonzero_params - masked.nonzero_params == 3 * 73


def test_masks_count_as_if_they_were_applied() -> None:
    model = Residual()
    pruner = LevelPruner(model, [{"sparsity": 0.6, "op_types": ["Conv2d"]}])
    pruner.compress()
    applied = count_flops_params(model, X)
    masks = {w.name: {"weight": w.mask("weight")} for w in pruner.get_modules_wrapper()}
    pruner.unwrap()
    before = copy.deepcopy(model.state_dict())
    weights = [module.weight for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert count_flops_params(model, X).masked_flops > applied.masked_flops
    assert count_flops_params(model, X, masks=masks) == applied
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert all(m.weight is w for m, w in zip(convolutions, weights, strict=True))


def test_masks_that_do_not_fit_are_refused() -> None:
    with pytest.raises(CheckpointError, match='no layer "stemm", did you mean "stem"'):
        count_flops_params(Residual(), X, masks={"stemm": {"weight": torch.ones(1)}})


class Restless(nn.Module):
    """Changes its buffers and draws numbers whenever it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("last", torch.zeros(2, 4))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.last = x + torch.rand_like(x)
        return nn.functional.dropout(self.norm(x), 0.5, training=True)


def test_the_model_its_modes_and_random_numbers_are_left_as_found() -> None:
    model = Restless().train()
    model.norm.eval()
    before, tensors = copy.deepcopy(model.state_dict()), dict(model.named_buffers())
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    count_flops_params(model, (2, 4))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(tensors[name] is buffer for name, buffer in model.named_buffers())
    assert model.training
    assert not model.norm.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_the_model_is_left_as_found_when_it_fails() -> None:
    model = Restless().train()
    with pytest.raises(EngineError, match=r"does not run on the example inputs(.|\n)*\(2, 5\)"):
        count_flops_params(model, torch.randn(2, 5))
    assert model.training
    assert float(model.calls) == 0
    assert torch.backends.mha.get_fastpath_enabled()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_keyword_arguments_reach_the_model() -> None:
    class Keyword(nn.Linear):
        def forward(self, x: Tensor, *, times: int = 1) -> Tensor:
            for _ in range(times):
                x = super().forward(x)
            return x

    x = torch.randn(3, 4)
    assert count_flops_params(Keyword(4, 4), x, {"times": 3}).flops == 3 * 2 * 3 * 16


def test_csv_and_json_hold_every_number(tmp_path) -> None:
    count = count_flops_params(Residual(), X)
    count.export(tmp_path / "c.csv")
    count.export(tmp_path / "c.json")
    with (tmp_path / "c.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert sum(int(row["flops"]) for row in rows) == count.flops
    assert rows[0]["weight_shape"] == "8x3x3x3"
    facts = json.loads((tmp_path / "c.json").read_text())
    assert facts["params"] == count.params
    assert [layer["name"] for layer in facts["layers"]] == [x.name for x in count.layers]
    assert "2 per multiply-add" in facts["convention"]


def test_the_table_fits_a_terminal() -> None:
    model = nn.Sequential()
    model.add_module("a_layer_whose_name_goes_on_and_on_for_longer_than_anybody_reads", Residual())
    lines = str(count_flops_params(model, X)).splitlines()
    assert max(map(len, lines)) <= 100
    assert any(line.startswith("..") and ".stem " in line for line in lines)
    assert lines[-2].startswith("total")
    assert "FLOPs: 2 per multiply-add" in lines[-1]


def test_the_table_at_the_end_of_a_run_has_each_layer_before_and_after(tmp_path) -> None:
    model = Residual().eval()
    pruner = L1FilterPruner(model, [{"sparsity": 0.5, "op_names": ["a", "b"]}])
    pruner.compress()
    x = torch.randn(X)
    before = count_flops_params(model, x)
    pruner.apply_speedup(x)
    after = count_flops_params(model, x)
    table = speedup_table(before, after, pruner.speedup_report)
    rows = {row["name"]: row for row in table.rows()}
    assert rows["a"]["before"] == (6, 8, 3, 3)
    assert rows["a"]["after"] == (3, 8, 3, 3)
    assert rows["a"]["flops_after"] == rows["a"]["masked_flops"] == rows["a"]["flops"] // 2
    kept = {change.name: change.kept for change in pruner.speedup_report.layers}
    assert kept["b"]  # the stem, which is not pruned, is added to it
    assert {name: row["kept"] for name, row in rows.items() if name in kept} == kept
    totals = table.totals
    assert totals["params"] == before.params
    assert totals["params_after"] == after.params == sum(p.numel() for p in model.parameters())
    assert totals["masked_flops"] == before.masked_flops
    text = str(table)
    assert kept["b"][:60] in text
    table.export(tmp_path / "t.csv")
    header = (tmp_path / "t.csv").read_text().splitlines()[0]
    assert header == ",".join(rows["a"])
