"""Hidden states are the same wherever they are kept."""

import pytest
import torch
from decoders import decoder, tokens
from torch import nn

import engine
from engine.algorithms import WandaPruner
from engine.calibration.states import LastingStates, TemporaryStates

OUTPUTS = [(torch.arange(6.0).view(2, 3).T, None, {"a": [torch.ones(2, dtype=torch.int64), 3]})]


def same(one, other):
    (first, none, rest), *_ = one
    (second, _, others), *_ = other
    assert torch.equal(first, second)
    assert first.stride() == second.stride()
    assert none is None
    assert torch.equal(rest["a"][0], others["a"][0])
    assert rest["a"][1] == others["a"][1] == 3


@pytest.mark.parametrize("kind", ["memory", "files", "lasting"])
def test_what_is_put_is_got_and_forgotten(kind, tmp_path):
    if kind == "lasting":
        states = LastingStates(tmp_path / "block", "block")
    else:
        states = TemporaryStates(str(tmp_path) if kind == "files" else None)
    states.put(0, OUTPUTS)
    same(states.get(0), OUTPUTS)
    assert states.get(1) == []
    zeros = [(torch.zeros(2, 3).T, None, {"a": [torch.zeros(2, dtype=torch.int64), 3]})]
    same(states.shapes().get(0), zeros)
    same(states.get(0), OUTPUTS)
    states.forget()
    same(states.get(0), zeros)
    states.forget()
    same(states.get(0), zeros)
    if kind == "lasting":
        same(LastingStates(tmp_path / "block", "block").get(0), zeros)
    states.close()


def test_a_cache_cannot_last(tmp_path):
    with pytest.raises(engine.EngineError, match=r'"layers\.1" puts out a Linear, which cannot be'):
        LastingStates(tmp_path, "layers.1").put(0, [nn.Linear(1, 1)])


def test_a_view_is_saved_without_what_it_is_a_view_of(tmp_path):
    states = LastingStates(tmp_path / "block", "block")
    states.put(0, [torch.zeros(1000, 1000)[:2, :2]])
    assert (tmp_path / "block" / "0").stat().st_size < 10_000


def test_every_one_shot_compressor_takes_a_folder_for_states(tmp_path):
    config = [{"sparsity": 0.5, "op_types": ["Linear"]}]
    masks = []
    for folder in (None, tmp_path):
        model = decoder(depth=3)
        pruner = WandaPruner(model, config, batches=tokens(), states_folder=folder)
        pruner.compress()
        masks.append([wrapper.weight_mask for wrapper in pruner.get_modules_wrapper()])
    assert all(map(torch.equal, *masks))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(engine.ConfigError, match=r"there is no folder .*nowhere"):
        WandaPruner(model, config, batches=tokens(), states_folder=tmp_path / "nowhere")
    section = {"compressor": "wanda", "config_list": config, "states_folder": str(tmp_path)}
    made = engine.create_compressor(decoder(), section, batches=tokens())
    assert made.states_folder == str(tmp_path)
