"""A fused optimizer under a GradScaler: its gradients are scaled, and it skips steps by itself."""

from typing import Any

import pytest
import torch
from torch import nn

from engine import Compressor
from engine.algorithms import LevelPruner, LSQQuantizer, SlimPruner, TaylorFOWeightFilterPruner
from engine.attach.scaled_steps import is_skipped

PRUNED = {"op_types": ["default"], "sparsity": 0.5}
ALGORITHMS: list[tuple[type[Compressor], dict, dict]] = [
    (TaylorFOWeightFilterPruner, PRUNED, {"statistics_batch_num": 9}),
    (SlimPruner, PRUNED, {"regular_scale": 0.1, "training_epochs": 9}),
    (LSQQuantizer, {"op_types": ["Linear"], "quant_types": ["weight"], "quant_bits": 4}, {}),
]


def trained(cls: type[Compressor], entry: dict, arguments: dict, fused: bool) -> dict[str, Any]:
    """Three steps, the second of which overflows; all that is known at the end."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=fused)
    compressor = cls(model, [entry], optimizer, **arguments)
    compressor.compress()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for factor in (1.0, float("inf"), 1.0):
        optimizer.zero_grad()
        loss = model(torch.randn(4, 8)).square().sum() * factor
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    assert scaler.get_scale() == 2.0**9
    layers = compressor.state_dict()["wrappers"]
    kept = {f"{n}.{k}": v for n, s in layers.items() for k, v in s["buffers"].items()}
    kept |= {f"{n}.batches": s["attributes"].get("batches") for n, s in layers.items()}
    return {**kept, **model.state_dict()}


@pytest.mark.parametrize(("cls", "entry", "arguments"), ALGORITHMS)
def test_a_fused_optimizer_trains_like_any_other(
    cls: type[Compressor], entry: dict, arguments: dict
) -> None:
    plain, fused = (trained(cls, entry, arguments, fused) for fused in (False, True))
    assert plain.keys() == fused.keys()
    for name, value in plain.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(fused[name], value, msg=name)
        else:
            assert fused[name] == value, name


def test_an_algorithm_that_counts_no_steps_does_not_ask_whether_one_was_skipped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def spy(optimizer: torch.optim.Optimizer) -> bool:
        asked.append(optimizer)
        return is_skipped(optimizer)

    monkeypatch.setattr("engine.attach.optimizer_hooks.is_skipped", spy)
    trained(LevelPruner, PRUNED | {"op_types": ["Linear"]}, {}, fused=True)
    assert not asked
    trained(*ALGORITHMS[0], fused=True)
    assert len(asked) == 3
