"""Times and sizes of models."""

from __future__ import annotations

import time

import pytest
import torch
from models import ConvNet
from torch import Tensor, nn

from engine import EngineError
from engine.analysis import compare_latency, measure_latency, model_size


class Clock(nn.Module):
    """Takes at least ``milliseconds``, and remembers in what order such models ran."""

    def __init__(self, name: str, milliseconds: float, log: list[str]) -> None:
        super().__init__()
        self.name, self.milliseconds, self.log = name, milliseconds, log

    def forward(self, x: Tensor) -> Tensor:
        assert not self.training
        assert not torch.is_grad_enabled()
        self.log.append(self.name)
        end = time.perf_counter() + self.milliseconds / 1e3
        while time.perf_counter() < end:
            pass
        return x


def test_only_passes_after_the_warm_up_count() -> None:
    log: list[str] = []
    latency = measure_latency(Clock("a", 1, log), torch.ones(1), runs=4, warmup=3)
    assert log == ["a"] * 7
    assert latency.runs == 4
    assert 1e-3 <= latency.minimum <= latency.low <= latency.median <= latency.high
    assert latency.device.startswith("cpu")


def test_two_models_are_timed_in_turn_and_the_ratio_is_b_over_a() -> None:
    log: list[str] = []
    a, b = Clock("a", 0.5, log), Clock("b", 4, log)
    found = compare_latency(a, b, torch.ones(1), runs=5, warmup=1)
    assert log == ["a", "b", "b", "a"] * 3
    assert found.low <= found.ratio <= found.high
    assert found.ratio > 1
    assert found.b.minimum >= 4e-3
    assert a.training
    assert b.training


def test_one_run_has_no_spread() -> None:
    latency = measure_latency(ConvNet(), (1, 1, 8, 8), runs=1, warmup=0)
    assert latency.low == latency.median == latency.high > 0


def test_no_runs_are_refused() -> None:
    with pytest.raises(EngineError, match="runs is at least 1"):
        measure_latency(ConvNet(), (1, 1, 8, 8), runs=0)


def test_bytes_are_those_of_tensors_and_of_the_file(tmp_path) -> None:
    model = ConvNet().half()
    size = model_size(model)
    assert size.parameters == 2 * sum(p.numel() for p in model.parameters())
    assert size.buffers == sum(b.numel() * b.element_size() for b in model.buffers())
    torch.save(model.state_dict(), tmp_path / "archive.pth")
    assert size.file == (tmp_path / "archive.pth").stat().st_size
    assert size.file > size.parameters + size.buffers


def test_shared_tensors_take_their_bytes_once() -> None:
    model = nn.ModuleList([nn.Linear(100, 100), nn.Linear(100, 100)])
    model[1].weight = model[0].weight
    assert model_size(model).parameters == 4 * (10_000 + 200)
    assert 4 * 10_200 < model_size(model).file < 4 * 15_000
