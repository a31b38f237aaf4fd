"""Files of smaller models that do not fit: a message, and a model that is unchanged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import engine
from engine import CheckpointError
from engine.speedup import speedup


def net(width: int = 8) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 2))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    model = net()
    with torch.no_grad():
        model[0].weight[:4] = 0
        model[0].bias[:4] = 0
    speedup(model, torch.randn(2, 4))
    engine.save_compressed(model, tmp_path / "small.pt")
    return tmp_path / "small.pt"


def test_another_class_of_layer_is_named(file: Path) -> None:
    other = nn.Sequential(nn.Conv1d(4, 8, 1), nn.ReLU(), nn.Linear(8, 2))
    before = {k: v.clone() for k, v in other.state_dict().items()}
    with pytest.raises(CheckpointError, match='"0" is a Conv1d, the saved one is a Linear'):
        engine.load_compressed(other, file)
    assert all(torch.equal(v, before[k]) for k, v in other.state_dict().items())


def test_a_missing_layer_is_named(file: Path) -> None:
    other = nn.ModuleDict({"body": net()})
    with pytest.raises(CheckpointError, match='the model has no module "0"'):
        engine.load_compressed(other, file)


def test_weights_that_do_not_fit_leave_the_model_as_it_was(file: Path) -> None:
    other = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2), nn.Linear(2, 2))
    before = {k: v.clone() for k, v in other.state_dict().items()}
    with pytest.raises(
        CheckpointError, match="the state_dict does not fit this model; nothing was changed"
    ):
        engine.load_compressed(other, file)
    assert all(torch.equal(v, before[k]) for k, v in other.state_dict().items())
    assert other[0].out_features == 8


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    torch.save(net().state_dict(), tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match="was not written by save_compressed"):
        engine.load_compressed(net(), tmp_path / "weights.pt")


def test_a_model_that_is_not_smaller_has_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="was not made smaller"):
        engine.save_compressed(net(), tmp_path / "small.pt")
    assert not list(tmp_path.iterdir())


class Remembers(nn.Module):
    """A model that keeps its last activations in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.seen = net(), []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen = [self.body[0](x)]
        return self.body(x)


def test_attributes_that_hold_tensors_are_not_taken_for_sizes(tmp_path: Path) -> None:
    model = Remembers()
    with torch.no_grad():
        model.body[0].weight[:4] = 0
        model.body[0].bias[:4] = 0
        model(torch.randn(2, 4))
        speedup(model, torch.randn(2, 4))
    engine.save_compressed(model, tmp_path / "small.pt")
    fresh = engine.load_compressed(Remembers(), tmp_path / "small.pt")
    assert fresh.body[0].out_features == 4
