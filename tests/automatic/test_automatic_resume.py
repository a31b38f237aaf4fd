"""A search that was interrupted goes on, and ends where it would have ended."""

import copy
import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest
import torch
from searches import QUICK, SEARCHING, search

from engine.errors import CheckpointError


class Interrupted(BaseException):
    pass


def stopping(function, after):
    """Return ``function`` that raises at its call number ``after``."""
    calls = 0

    def call(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == after:
            raise Interrupted
        return function(*args, **kwargs)

    return call


def train_signature(function, after):
    inner = stopping(function, after)

    def train(model, optimizer, epoch):
        inner(model, optimizer, epoch)

    return train


@pytest.mark.parametrize("name", QUICK)
@pytest.mark.parametrize("after", [2, 6])
def test_an_interrupted_search_ends_where_it_would_have_ended(
    name, after, model, evaluator, trainer, tmp_path
):
    start = copy.deepcopy(model.state_dict())
    whole = search(copy.deepcopy(model), name, evaluator, trainer)
    whole.compress()
    once = min(after, 3) if name == "admm" else after
    by_training = name == "admm"
    first = search(
        model, name,
        evaluator if by_training else stopping(evaluator, once),
        train_signature(trainer, once) if by_training else trainer,
        experiment_data_dir=str(tmp_path / "run"),
    )  # fmt: skip
    with pytest.raises(Interrupted):
        first.compress()
    for key, value in model.state_dict().items():
        assert torch.equal(value, start[key]), "an interrupted search changed the model"
    asked = []

    def counting(model):
        asked.append(1)
        return evaluator(model)

    second = search(model, name, counting, trainer, experiment_data_dir=str(tmp_path / "run"))
    second.compress()
    assert second.plan == whole.plan
    assert [t.what for t in second.trials] == [t.what for t in whole.trials]
    if name in SEARCHING:
        # One more for search_result.json.
        assert len(asked) <= len(whole.trials) - (once - 1) + 1
    result = json.loads((tmp_path / "run" / "search_result.json").read_text())
    assert {e["op_names"][0]: e["sparsity"] for e in result["config_list"]} == second.plan


def test_what_was_trained_is_loaded_and_not_trained_again(model, evaluator, trainer, tmp_path):
    folder = str(tmp_path / "run")
    start = copy.deepcopy(model)
    search(model, "net_adapt", evaluator, trainer, experiment_data_dir=folder).compress()

    def forbidden(model, optimizer, epoch):
        raise AssertionError("trained again")

    again = search(start, "net_adapt", evaluator, forbidden, experiment_data_dir=folder)
    again.compress()
    for key, value in model.state_dict().items():
        assert torch.equal(value, start.state_dict()[key])


def test_a_search_with_other_settings_is_refused(model, evaluator, trainer, tmp_path):
    folder = str(tmp_path / "run")
    search(model, "amc", evaluator, None, experiment_data_dir=folder).compress().zero_grad()
    other = search(
        copy.deepcopy(model), "amc", evaluator, None, experiment_data_dir=folder, sparsity=0.4
    )
    with pytest.raises(CheckpointError, match="belongs to another search"):
        other.compress()


def test_a_damaged_file_is_refused(model, evaluator, trainer, tmp_path):
    (tmp_path / "search.json").write_text("{")
    pruner = search(model, "amc", evaluator, None, experiment_data_dir=str(tmp_path))
    with pytest.raises(CheckpointError, match="is not the progress of a search"):
        pruner.compress()


def test_a_killed_process_goes_on(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(
        textwrap.dedent(
            """
            import os, signal, sys
            import torch
            from torch import nn
            import engine

            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU())
            model.append(nn.Linear(16, 2))
            x = torch.randn(32, 8, generator=torch.Generator().manual_seed(1))
            calls = 0

            def evaluator(model):
                global calls
                calls += 1
                if calls == int(sys.argv[2]):
                    os.kill(os.getpid(), signal.SIGKILL)
                with torch.no_grad():
                    return -(model(x) ** 2).mean().item()

            config = {"compressor": "simulated_annealing", "cool_down_rate": 0.5,
                      "config_list": [{"sparsity": 0.5, "op_types": ["Linear"]}]}
            pruner = engine.create_compressor(model, config, evaluator=evaluator, verbose=False,
                                              dummy_input=x, experiment_data_dir=sys.argv[1])
            pruner.compress()
            print(calls, len(pruner.trials), sorted(pruner.plan.items()))
            """
        )
    )

    def run(folder, kill):
        command = [sys.executable, str(script), str(tmp_path / folder), str(kill)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run(command, capture_output=True, text=True, env=environment)

    whole = run("whole", -1)
    assert whole.returncode == 0, whole.stderr
    killed = run("killed", 7)
    assert killed.returncode == -signal.SIGKILL
    resumed = run("killed", -1)
    calls, trials, plan = resumed.stdout.split(maxsplit=2)
    assert (trials, plan) == tuple(whole.stdout.split(maxsplit=2)[1:])
    assert int(calls) == int(whole.stdout.split()[0]) - 6


@pytest.mark.parametrize("name", QUICK)
def test_a_saved_pruner_is_restored_without_searching(name, model, evaluator, trainer):
    first = search(model, name, evaluator, trainer)
    first.compress()
    trainer(model, first.optimizer, 0)
    state, weights = copy.deepcopy(first.state_dict()), copy.deepcopy(model.state_dict())

    def forbidden(*args):
        raise AssertionError("searched again")

    again = copy.deepcopy(model)
    second = search(again, name, forbidden, lambda model: forbidden())
    second.load_state_dict(state)
    second.compress()
    second.load_model_state_dict(weights)
    assert second.plan == first.plan
    for old, new in zip(first.wrappers, second.wrappers, strict=True):
        assert torch.equal(old.weight_mask, new.weight_mask)
    trainer(again, second.optimizer, 1)
    for wrapper in second.wrappers:
        assert not wrapper.weight[wrapper.weight_mask == 0].any()
    assert second.apply_speedup() is again
