"""What the base of watchers says when, and what is known of a layer."""

import pytest
import torch
from models import mlp
from watching import agp, train

import engine
from engine import Watcher, layer_states, total_sparsity
from engine.algorithms import DoReFaQuantizer, LevelPruner, QAT_Quantizer


class Notes(Watcher):
    def __init__(self, every=0):
        super().__init__(every)
        self.seen = []

    def begin(self):
        self.seen.append("begin")

    def look(self, moment):
        sparsity = total_sparsity(self.compressor)
        self.seen.append((moment, self.epoch, self.steps, round(sparsity, 2)))

    def end(self):
        self.seen.append("end")


def test_looks_when_masks_are_new_when_an_epoch_begins_and_at_the_end():
    """AGP: 0 in epoch 0, 0.8 (1 - (1/2)^3) = 0.7 in epoch 1, then 0.8; 120 weights in all."""
    notes = Notes()
    pruner = agp(notes)
    train(pruner)
    pruner.unwrap()
    assert notes.seen == [
        "begin",
        ("masks", 0, 0, 0.0),
        ("epoch", 0, 0, 0.0),
        ("epoch", 1, 2, 0.0),
        ("masks", 1, 3, 0.7),
        ("epoch", 2, 4, 0.7),
        ("masks", 2, 5, 0.8),
        ("end", 2, 6, 0.8),
        "end",
    ]
    assert notes.compressor is None


def test_looks_after_every_so_many_steps():
    notes = Notes(every=3)
    train(agp(notes), epochs=2, steps=4)
    assert [look[2] for look in notes.seen if look[0] == "step"] == [3, 6]


def test_steps_go_on_after_resuming():
    notes = Notes()
    pruner = agp(notes)
    train(pruner, epochs=2)
    saved = pruner.state_dict()
    fresh = Notes()
    resumed = agp(fresh)
    resumed.load_state_dict(saved)
    train(resumed, epochs=1, first=2)
    assert fresh.steps == 6


def test_a_state_without_the_extension_can_be_loaded_and_the_other_way_round():
    with_notes, without = agp(Notes()), agp()
    train(with_notes, epochs=1)
    without.load_state_dict(with_notes.state_dict())
    with_notes.load_state_dict(without.state_dict())
    assert with_notes.extensions[0].steps == 2


def test_two_of_one_class_keep_their_states_apart():
    first, second = Notes(), Notes()
    pruner = agp(first, second)
    first.steps = 7
    resumed = agp(Notes(), Notes())
    resumed.load_state_dict(pruner.state_dict())
    assert [each.steps for each in resumed.extensions] == [7, 0]


def test_the_state_of_a_pruned_layer():
    model = mlp()
    pruner = LevelPruner(model, [{"sparsity": 0.5, "op_names": ["2"]}])
    assert layer_states(pruner) == [("2", "Linear", None, {})]
    pruner.compress()
    assert layer_states(pruner) == [("2", "Linear", 0.5, {})]
    assert total_sparsity(pruner) == 0.5


def test_the_ranges_of_a_quantized_layer_are_the_ends_of_its_grid():
    """8 bits, affine: from S (0 - Z) to S (255 - Z)."""
    model = mlp()
    entry = {"quant_types": ["weight", "input"], "quant_bits": 8, "op_names": ["0"]}
    quantizer = QAT_Quantizer(model, [entry])
    quantizer.compress()
    assert "input" not in layer_states(quantizer)[0].ranges
    x = torch.rand(16, 8) * 4 - 1
    model(x)
    ((name, kind, sparsity, ranges),) = layer_states(quantizer)
    assert (name, kind, sparsity) == ("0", "Linear", None)
    low, high = ranges["input"]
    assert low == pytest.approx(float(x.min()), abs=5 / 255)
    assert high == pytest.approx(float(x.max()), abs=5 / 255)
    weight = model[0].weight.detach()
    assert ranges["weight"] == pytest.approx((weight.min().item(), weight.max().item()), abs=1e-3)
    assert total_sparsity(quantizer) is None


def test_a_quantizer_without_a_grid_has_no_ranges():
    entry = {"quant_types": ["weight"], "quant_bits": 2, "op_types": ["Linear"]}
    quantizer = DoReFaQuantizer(mlp(), [entry])
    quantizer.compress()
    assert [state.ranges for state in layer_states(quantizer)] == [{}, {}]


def test_a_watcher_in_another_process_than_the_first_is_silent(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(torch.distributed, "broadcast", lambda tensor, src: None)
    notes = Notes()
    train(agp(notes), epochs=1)
    assert notes.seen == []
    assert notes.steps == 2


def test_no_extension_is_active_unasked():
    compressor = engine.create_compressor(
        mlp(), {"compressor": "level", "config_list": [{"sparsity": 0.5, "op_types": ["Linear"]}]}
    )
    compressor.compress()
    assert compressor.extensions == ()
