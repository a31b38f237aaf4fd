"""Candidates whose layers are fitted to the dense model's before they are judged."""

import copy

import pytest
import torch
from searches import QUICK, search

from engine.errors import EngineError


@pytest.fixture
def trained(model, trainer):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for epoch in range(20):
        trainer(model, optimizer, epoch)
    return model.eval()


def nothing(model, optimizer, epoch):
    """A trainer that leaves the model as it is."""


def found(model, name, data, evaluator, trainer, **given):
    """Return a search that is over; ``inner`` can go, as far as others make up for it."""
    pruner = search(model, name, evaluator, trainer, op_types=["Conv2d"], **given)
    pruner.compress()
    return pruner


@pytest.mark.parametrize("name", QUICK)
def test_the_same_plans_are_judged_by_fitted_models(name, trained, data, evaluator):
    dense = trained(data[0]).detach()
    off = {}
    for batches in (None, [data[0]]):
        model = copy.deepcopy(trained)
        pruner = found(
            model, name, data, evaluator, nothing, sparsity=0.4, reconstruction_batches=batches
        )
        off[batches is None] = (model.eval()(data[0]) - dense).square().sum()
        assert pruner.plan
        for wrapper in pruner.get_modules_wrapper():
            assert not wrapper.weight[wrapper.weight_mask == 0].any()
    assert off[False] < off[True] / 2


def test_trials_leave_the_model_as_it_was(trained, data, evaluator):
    pruner = search(trained, "amc", evaluator, None, reconstruction_batches=[data[0]])
    before = copy.deepcopy(trained.state_dict())
    seen = []

    def search_nothing():
        for sparsity in (0.25, 0.5):
            plan = pruner.strongest(sparsity)
            seen.append(pruner.try_plan(plan, "a trial").metric)
            for key, value in trained.state_dict().items():
                assert torch.equal(value, before[key])
        pruner.adopt(pruner.try_plan(plan, "the last"))

    pruner.search = search_nothing
    pruner.compress()
    assert pruner.trials[-1].metric == seen[-1] == evaluator(trained)
    assert seen[0] > seen[1]


def test_an_interrupted_search_ends_where_it_would_have_ended(trained, data, evaluator, tmp_path):
    given = {"sparsity": 0.4, "reconstruction_batches": [data[0]]}
    whole = copy.deepcopy(trained)
    found(whole, "net_adapt", data, evaluator, nothing, **given)
    calls = 0

    def failing(model):
        nonlocal calls
        calls += 1
        if calls == 6:
            raise KeyboardInterrupt
        return evaluator(model)

    given["experiment_data_dir"] = str(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        found(trained, "net_adapt", data, failing, nothing, **given)
    found(trained, "net_adapt", data, evaluator, nothing, **given)
    for key, value in trained.state_dict().items():
        assert torch.allclose(value, whole.state_dict()[key], atol=1e-6)


def test_batches_that_are_none_are_refused_before_the_search(model, evaluator):
    pruner = search(model, "amc", evaluator, None, reconstruction_batches=[])
    with pytest.raises(EngineError, match="reconstruction got"):
        pruner.compress()
    assert pruner.trials == []
