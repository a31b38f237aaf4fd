"""Import, the Python API and the commands without what macOS or Windows lack."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

Say = Callable[..., str]
TRAIN = """
import torch, engine
model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
entry = {"op_types": ["Linear"], "final_sparsity": 0.75, "end_epoch": 2}
config = {"compressor": "agp", "config_list": [entry]}
compressor = engine.create_compressor(model, config, optimizer)
model = compressor.compress()
for epoch in range(3):
    compressor.update_epoch(epoch)
    model(torch.randn(4, 8)).square().sum().backward()
    optimizer.step()
compressor.export_model("model.pth", "mask.pth")
print(float((model[0].weight == 0).float().mean()))
"""


MISSED = """
import os, signal
print(hasattr(os, "sched_getaffinity"), hasattr(os, "killpg"), hasattr(signal, "SIGHUP"))
"""
STARTED = """
import subprocess, sys
start = [sys.executable, *{options}, "missed.py"]
print(subprocess.run(start, capture_output=True, text=True).stdout)
"""


@pytest.mark.parametrize("options", [[], ["-I", "-S"]])
def test_what_is_taken_away_is_missed_in_what_a_process_starts_too(
    say: Say, system: str, tmp_path: Path, options: list[str]
) -> None:
    (tmp_path / "missed.py").write_text(MISSED)
    wanted = {"macos": "False True True", "windows": "False False False"}[system]
    assert say("-c", MISSED).strip() == wanted
    assert say("-c", STARTED.format(options=options)).strip() == wanted


def test_the_engine_finds_no_proc(say: Say) -> None:
    code = "exec('open(\"/proc/self/stat\")', {'__name__': 'engine.some'})"
    assert "No such file" in say("-c", f"try: {code}\nexcept OSError as error: print(error)")


def test_a_model_is_pruned_while_it_trains(say: Say) -> None:
    assert float(say("-c", TRAIN)) == 0.75


def test_what_is_installed_is_listed_and_shown(say: Say) -> None:
    assert "lsq_plus" in say("list-algorithms")
    assert "sparsity" in say("show", "level")


def test_a_file_is_checked(say: Say, experiment: Callable[..., Path]) -> None:
    assert "experiment.json: ok" in say("validate", str(experiment(0.5)))
    assert "sparsity" in say("validate", str(experiment(1.5)), code=2)


def test_a_package_is_made(say: Say, tmp_path: Path) -> None:
    say("new-algorithm", "random_weights", "--kind", "pruning")
    record = (tmp_path / "engine-random-weights" / ".engine-template.json").read_text("utf-8")
    assert "engine_random_weights/schema.json" in json.dumps(json.loads(record)["files"])


@pytest.mark.parametrize(
    "check", ["it_loads_without_side_effects", "it_trains_in_distributed_data_parallel"]
)
def test_what_is_tried_in_a_process_of_its_own_is_tried(say: Say, check: str) -> None:
    assert f"ok        {check}" in say("check", "level", "--only", check)


def test_a_model_is_analyzed_and_exported(
    say: Say, experiment: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "net.py").write_text(
        "from torch import nn\ndef build(): return nn.Sequential(nn.Linear(8, 4))\n"
    )
    assert "Linear" in say("analyze", "flops", "--model", "net:build", "--input-shape", "1,8")
    file = tmp_path / "level.json"
    entry = {"op_types": ["Linear"], "sparsity": 0.5}
    file.write_text(json.dumps({"compressor": "level", "config_list": [entry]}))
    say("export", str(file), "--model", "net:build", "--output", "small.pth")
    assert (tmp_path / "small.pth").exists()
