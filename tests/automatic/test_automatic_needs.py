"""What a search lacks is said before anything runs; what goes wrong leaves the model as found."""

import copy
import functools

import pytest
import torch
from searches import SEARCHING, search

from engine.errors import ConfigError, EngineError, PluginError


def never(*args, **kwargs):
    raise AssertionError("the search has begun")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"evaluator": None}, "evaluator is missing"),
        ({"evaluator": 3}, "evaluator is a int"),
        ({"evaluator": lambda: 1}, "evaluator cannot be called with the model"),
        ({"trainer": None}, "trainer is missing"),
        ({"trainer": lambda: 1}, "trainer takes no model"),
        ({"trainer": lambda model, loader: 1}, 'trainer has the parameter "loader"'),
        ({"dummy_input": None, "budget": "flops"}, "budget flops needs dummy_input"),
        ({"base_algo": "level", "budget": "latency"}, "takes no latency away"),
    ],
)
def test_it_is_said_before_anything_runs(given, message, model):
    arguments = {"evaluator": never, "trainer": lambda model, optimizer, epoch: never(), **given}
    pruner = search(
        model, "net_adapt", arguments.pop("evaluator"), arguments.pop("trainer"), **arguments
    )
    with pytest.raises(ConfigError, match=message):
        pruner.compress()


def test_a_trainer_without_an_optimizer_to_take_is_refused(model):
    from engine.algorithms import NetAdaptPruner

    pruner = NetAdaptPruner(
        model, [{"sparsity": 0.5, "op_types": ["Conv2d"]}],
        evaluator=lambda model: 1.0, trainer=lambda model, optimizer: None,
    )  # fmt: skip
    with pytest.raises(ConfigError, match="takes an optimizer, but none was given"):
        pruner.compress()


def test_trainers_written_for_nni_are_called_with_what_they_take(model, evaluator, trainer):
    seen = []

    def nni(model, optimizer=None, criterion=None, epoch=0, callback=None):
        seen.append((type(criterion).__name__, epoch))
        callback()
        trainer(model, optimizer, epoch)

    pruner = search(model, "admm", None, nni)
    pruner.compress()
    assert seen == [("CrossEntropyLoss", 0), ("CrossEntropyLoss", 1), ("CrossEntropyLoss", 2)]


def test_other_arguments_are_bound_with_partial(model, evaluator, trainer):
    def with_loader(model, optimizer, epoch, loader):
        assert loader == "data"
        trainer(model, optimizer, epoch)

    search(model, "admm", None, functools.partial(with_loader, loader="data")).compress()


@pytest.mark.parametrize("name", SEARCHING)
def test_an_evaluator_that_fails_leaves_model_and_optimizer_as_found(
    name, model, evaluator, trainer
):
    before = copy.deepcopy(model.state_dict())
    calls = 0

    def fails(model):
        nonlocal calls
        calls += 1
        return "good" if calls == 6 else evaluator(model)

    pruner = search(model, name, fails, trainer)
    with pytest.raises(EngineError, match="evaluator must return a number"):
        pruner.compress()
    assert not pruner.optimizer.state_dict()["state"]
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])
    assert "_engine" not in " ".join(vars(model))
    assert all(type(m).__module__.startswith(("torch", "tests_small")) for m in model.modules())


def test_a_search_that_trains_nothing_can_be_taken_back(model, evaluator):
    before = copy.deepcopy(model.state_dict())
    pruner = search(model, "simulated_annealing", evaluator, None)
    pruner.compress()
    assert (model.inner.weight == 0).any()
    pruner.unwrap()
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])


def test_a_pruner_that_ranks_by_activations_is_shown_data(model, evaluator):
    pruner = search(
        model, "simulated_annealing", evaluator, None, base_algo="activation_apoz_rank_filter",
        op_types=["Conv2d"],
    )  # fmt: skip
    pruner.compress()
    assert any((m.weight_mask == 0).any() for m in pruner.wrappers)


def test_a_pruner_that_ranks_by_gradients_is_refused_with_the_way_out(model, evaluator):
    pruner = search(
        model, "simulated_annealing", evaluator, None, base_algo="taylor_fo_weight_filter",
        op_types=["Conv2d"],
    )  # fmt: skip
    with pytest.raises(PluginError, match="use a base_algo that ranks by weights"):
        pruner.compress()


def test_the_masks_stand_while_training_goes_on(model, evaluator, trainer):
    pruner = search(model, "simulated_annealing", evaluator, None)
    pruner.compress()
    masks = {w.name: w.weight_mask.clone() for w in pruner.wrappers}
    for epoch in range(2):
        pruner.update_epoch(epoch)
        trainer(model, pruner.optimizer, epoch)
    for wrapper in pruner.wrappers:
        assert torch.equal(wrapper.weight_mask, masks[wrapper.name])
        assert not wrapper.weight[wrapper.weight_mask == 0].any()


def test_progress_is_written_unless_it_is_turned_off(model, evaluator, capsys):
    pruner = search(model, "amc", evaluator, None, verbose=True)
    pruner.compress()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(pruner.trials) == 9
    assert "the model as it is" in lines[0]
    assert "episode 8" in pruner.search_report()
    assert pruner.search_report().count("*") == 1
