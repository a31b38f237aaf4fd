"""What a script leaves: its model where it belongs, made smaller; and a report on it."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import engine
from engine import EngineError
from engine.algorithms import L1FilterPruner, QAT_Quantizer


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten()).eval()


EXAMPLE = torch.linspace(-1, 1, 72).view(2, 1, 6, 6)


def pruned() -> tuple[L1FilterPruner, Tensor]:
    model = net()
    pruner = L1FilterPruner(model, [{"op_names": ["0"], "sparsity": 0.5}])
    pruner.compress()
    with torch.no_grad():
        return pruner, model(EXAMPLE)


@pytest.mark.parametrize("first", [False, True])
def test_an_export_with_speedup_is_smaller_and_computes_the_same(
    tmp_path: Path, first: bool
) -> None:
    pruner, expected = pruned()
    if first:
        pruner.apply_speedup(EXAMPLE)
    masks = None if first else tmp_path / "mask.pth"
    pruner.export_model(tmp_path / "small.pth", masks, speedup=True, dummy_input=EXAMPLE)
    small = engine.load_compressed(net(), tmp_path / "small.pth")
    assert small[0].weight.shape == (4, 1, 3, 3)
    with torch.no_grad():
        assert torch.allclose(small(EXAMPLE), expected, atol=1e-6)
    if masks is not None:
        assert engine.load_masks(masks)["0"]["weight"].shape == (8, 1, 3, 3)


def test_masks_that_are_gone_are_not_exported(tmp_path: Path) -> None:
    pruner, _ = pruned()
    pruner.apply_speedup(EXAMPLE)
    with pytest.warns(UserWarning, match="there are no masks any more"):
        pruner.export_model(tmp_path / "small.pth", tmp_path / "mask.pth")
    assert [path.name for path in tmp_path.iterdir()] == ["small.pth"]


def test_relative_paths_go_into_the_jobs_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pruner, _ = pruned()
    pruner.export_model("here.pth")
    pruner.export_model("model.pth", folder_name="one")
    monkeypatch.setenv("ENGINE_MODEL_FOLDER", str(tmp_path / "models" / "3"))
    pruner.export_model("model.pth", "mask.pth")
    pruner.export_model("model.pth", tmp_path / "mask.pth", folder_name="two")
    model = net()
    quantizer = QAT_Quantizer(
        model, [{"op_types": ["Conv2d"], "quant_types": ["weight"], "quant_bits": 8}]
    )
    quantizer.compress()
    quantizer.export_model("quantized.pth", folder_name="two")
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.pth")) == [
        "here.pth",
        "mask.pth",
        "models/3/mask.pth",
        "models/3/model.pth",
        "models/3/two/model.pth",
        "models/3/two/quantized.pth",
        "one/model.pth",
    ]


def test_the_report_counts_what_can_be_counted_by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENGINE_REPORT_FILE", str(tmp_path / "0.report.json"))
    pruner, _ = pruned()
    model, before = pruner.bound_model, net()
    pruner.apply_speedup(EXAMPLE)
    report = engine.report_model(
        model, before=before, dummy_input=EXAMPLE, measures={"accuracy": (0.9, 0.8)}
    )
    assert json.loads((tmp_path / "0.report.json").read_text()) == report
    params = [8 * 9 + 8 + 4 * 8 * 9 + 4, 4 * 9 + 4 + 4 * 4 * 9 + 4]
    assert list(report["totals"]["params"].values()) == params
    # 2 images; outputs of 4x4 and of 2x2; 2 operations for each weight used.
    flops = [2 * 2 * (8 * 9 * 16 + 4 * 8 * 9 * 4), 2 * 2 * (4 * 9 * 16 + 4 * 4 * 9 * 4)]
    assert list(report["totals"]["flops"].values()) == flops
    assert report["totals"]["file_bytes"]["after"] < report["totals"]["file_bytes"]["before"]
    assert all(seconds > 0 for seconds in report["totals"]["latency_seconds"].values())
    assert report["measures"] == {"accuracy": {"before": 0.9, "after": 0.8}}
    first, second = report["layers"]
    assert (first["name"], first["shape_before"], first["shape_after"]) == (
        "0",
        [8, 1, 3, 3],
        [4, 1, 3, 3],
    )
    assert (first["sparsity"], second["sparsity"]) == (0.5, 0.5)


def test_the_report_of_a_quantized_model_has_bits_and_packed_bytes() -> None:
    model = net()
    before = copy.deepcopy(model)
    entry = {"op_names": ["2"], "quant_types": ["weight", "input"], "quant_bits": 4}
    quantizer = QAT_Quantizer(model, [entry])
    quantizer.compress()
    model(EXAMPLE)
    report = engine.report_model(model, quantizer, before=before)
    assert [layer["weight_bits"] for layer in report["layers"]] == [32, 4]
    assert [layer["activation_bits"] for layer in report["layers"]] == [32, 4]
    other = 4 * (8 * 9 + 8 + 4)
    assert math.isclose(report["totals"]["file_bytes"]["after"], other + 144, rel_tol=0.5)
    assert report["totals"]["flops"] == {"before": None, "after": None}


@pytest.mark.parametrize("pair", [1.0, (1.0,), ("a", "b"), (1.0, float("nan"))])
def test_a_measure_is_a_pair_of_numbers(pair: Any) -> None:
    with pytest.raises(EngineError, match=r'measures\["accuracy"\]'):
        engine.report_model(net(), measures={"accuracy": pair})
