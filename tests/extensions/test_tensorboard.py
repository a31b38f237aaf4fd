"""Curves for TensorBoard, read back with TensorBoard's own reader."""

import builtins

import pytest
import torch
from models import mlp
from watching import agp, train

from engine import EngineError
from engine.algorithms import QAT_Quantizer
from plugins_builtin.tensorboard import TensorBoard

accumulator = pytest.importorskip(
    "tensorboard.backend.event_processing.event_accumulator",
    reason="the extra tensorboard is not installed",
)


def curves(folder):
    events = accumulator.EventAccumulator(str(folder))
    events.Reload()
    return {
        tag: [(event.step, round(event.value, 3)) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def test_sparsity_over_steps_layer_by_layer(tmp_path):
    pruner = agp(TensorBoard(str(tmp_path)))
    train(pruner)
    pruner.unwrap()
    found = curves(tmp_path)
    assert found.keys() == {"sparsity/(model)", "sparsity/0", "sparsity/2"}
    expected = [(0, 0), (0, 0), (2, 0), (3, 0.7), (4, 0.7), (5, 0.8), (6, 0.8)]
    assert found["sparsity/0"] == expected
    assert found["sparsity/(model)"] == expected


def test_ranges_of_a_quantizer(tmp_path):
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    entry = {"quant_types": ["weight", "output"], "quant_bits": 4, "op_names": ["0"]}
    extension = TensorBoard(str(tmp_path), every=1)
    quantizer = QAT_Quantizer(model, [entry], optimizer, extensions=[extension])
    quantizer.compress()
    train(quantizer, epochs=1)
    quantizer.unwrap()
    found = curves(tmp_path)
    assert {f"range/0/{key}/{end}" for key in ("weight", "output") for end in ("low", "high")} == (
        found.keys()
    )
    for (_, low), (_, high) in zip(
        found["range/0/output/low"], found["range/0/output/high"], strict=True
    ):
        assert low <= 0 <= high
        assert low < high


def test_a_resumed_run_takes_the_place_of_what_was_beyond_its_checkpoint(tmp_path):
    pruner = agp(TensorBoard(str(tmp_path)))
    train(pruner, epochs=1)
    saved = pruner.state_dict()
    train(pruner, epochs=2, first=1)  # lost: the run went on and crashed
    pruner.extensions[0].end()
    resumed = agp(TensorBoard(str(tmp_path)))
    resumed.load_state_dict(saved)
    train(resumed, epochs=1, first=1)
    resumed.unwrap()
    assert max(step for step, _ in curves(tmp_path)["sparsity/0"]) == 4


def test_without_tensorboard_the_extra_is_named_and_the_model_left_alone(monkeypatch, tmp_path):
    whole = builtins.__import__

    def without(name, *arguments, **more):
        if name.startswith(("tensorboard", "torch.utils.tensorboard")):
            raise ImportError("No module named 'tensorboard'")
        return whole(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(EngineError) as caught:
        agp(TensorBoard(str(tmp_path)))
    assert str(caught.value) == (
        "the extension tensorboard needs TensorBoard (No module named 'tensorboard')\n"
        "  pip install 'engine[tensorboard]'"
    )


def test_importing_it_does_not_import_tensorboard():
    import subprocess
    import sys

    code = "import sys, plugins_builtin.tensorboard; print('tensorboard' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
