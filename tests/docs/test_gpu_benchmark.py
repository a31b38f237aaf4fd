"""docs/benchmarks/gpu.py runs where there is no card, and counts waits where there is one."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "benchmarks"


@pytest.mark.slow
def test_the_script_runs_without_a_card():
    command = [sys.executable, str(FOLDER / "gpu.py"), "--device", "cpu", "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ})
    assert done.returncode == 0, done.stderr
    assert "NO CARD" in done.stdout
    for name in ("level", "agp", "l1_filter", "taylor", "qat", "lsq", "dorefa"):
        assert done.stdout.count(f"\n  {name} ") >= 3, name
    for part in ("Masks of level", "Masks of fpgm", "int8, product alone", "2:4 sparse"):
        assert part in done.stdout
    assert "left out: torch" not in done.stdout


def test_waits_are_counted_by_the_line_that_causes_them(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import gpu_clock

    modes = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def call():
        for _ in range(2):
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        warnings.warn("Synchronization debug mode is a prototype feature", stacklevel=1)

    found = gpu_clock.waits(call, torch.device("cuda"))
    ((place, count),) = found.items()
    assert count == 2
    assert place.startswith(os.sep.join(("tests", "docs", "test_gpu_benchmark.py:")))
    assert modes == ["warn", "default"]
    assert gpu_clock.waits(call, torch.device("cpu")) is None
