"""Stopped and resumed, training goes on bit for bit; a foreign state changes nothing."""

import copy
import io

import pytest
import torch
from models import ConvNet, calibration_of, images, pruner_plugins, settings_of, train_step, zeros

from engine import CheckpointError, Pruner
from engine.algorithms import AGPPruner, FPGMPruner, LevelPruner, TaylorFOWeightFilterPruner

HALF = [{"sparsity": 0.5, "op_types": ["default"]}]
PLUGINS = pruner_plugins()
PROVIDERS = [plugin.name for plugin in pruner_plugins("provider")]


def run(model, optimizer, pruner, batches):
    """Four minibatches an epoch."""
    for batch in batches:
        if batch % 4 == 0:
            pruner.update_epoch(batch // 4)
        train_step(model, optimizer, images(seed=batch))


def through_a_file(value):
    stream = io.BytesIO()
    torch.save(value, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=True)


def attached(make, state=None):
    torch.manual_seed(7)
    model = ConvNet()
    if state is not None:
        model.load_state_dict(state)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02, weight_decay=0.1)
    pruner = make(model, optimizer)
    return model, optimizer, pruner


def assert_equal(ours, theirs):
    assert type(ours) is type(theirs)
    if isinstance(ours, torch.Tensor):
        assert torch.equal(ours, theirs)
    elif isinstance(ours, dict):
        assert list(ours) == list(theirs)
        for key in ours:
            assert_equal(ours[key], theirs[key])
    elif isinstance(ours, (list, tuple)):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_equal(one, other)
    else:
        assert ours == theirs


MAKERS = {
    plugin.name: lambda m, o, plugin=plugin: plugin.load()(m, optimizer=o, **settings_of(plugin))
    for plugin in PLUGINS
} | {
    f"agp over {base}": lambda m, o, base=base: AGPPruner(
        m,
        [{"final_sparsity": 0.8, "end_epoch": 3, "op_types": ["default"]}],
        o,
        base,
        **calibration_of(base),
    )
    for base in PROVIDERS
}


@pytest.mark.parametrize("order", ["weights first", "weights last", "before compress"])
@pytest.mark.parametrize("stop", [5, 8])
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())
def test_resumed_bit_for_bit(make, stop, order):
    model, optimizer, pruner = attached(make)
    pruner.compress()
    run(model, optimizer, pruner, range(stop))
    saved = through_a_file(
        {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "p": pruner.state_dict()}
    )
    run(model, optimizer, pruner, range(stop, 16))

    again, optimizer2, pruner2 = attached(make, saved["model"] if order != "weights last" else None)
    if order == "before compress":
        pruner2.load_state_dict(saved["p"])
        pruner2.compress()
    else:
        pruner2.compress()
        if order == "weights last":
            again.load_state_dict(saved["model"])
        pruner2.load_state_dict(saved["p"])
    optimizer2.load_state_dict(saved["optimizer"])
    assert_equal(dict(again.state_dict()), dict(saved["model"]))
    assert_equal(pruner2.state_dict(), saved["p"])
    run(again, optimizer2, pruner2, range(stop, 16))
    assert_equal(dict(again.state_dict()), dict(model.state_dict()))
    assert_equal(pruner2.state_dict(), pruner.state_dict())


def test_saved_between_update_epoch_and_the_first_step():
    make = MAKERS["agp over level"]
    model, optimizer, pruner = attached(make)
    pruner.compress()
    run(model, optimizer, pruner, range(4))
    pruner.update_epoch(1)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict(), pruner.state_dict()))
    again, optimizer2, pruner2 = attached(make, saved[0])
    pruner2.compress()
    optimizer2.load_state_dict(saved[1])
    pruner2.load_state_dict(saved[2])
    for net, opt in ((model, optimizer), (again, optimizer2)):
        train_step(net, opt, images(seed=9))
    assert_equal(pruner2.state_dict(), pruner.state_dict())
    assert_equal(dict(again.state_dict()), dict(model.state_dict()))


def test_the_state_is_a_snapshot():
    _, _, pruner = attached(MAKERS["level"])
    pruner.compress()
    pruner.set_wrappers_attribute("seen", [])
    pruner.set_wrappers_attribute("total", torch.zeros(2))
    state = pruner.state_dict()
    wrapper = pruner.get_modules_wrapper()[0]
    wrapper.seen.append(1)
    wrapper.total.add_(1)
    wrapper.weight_mask.zero_()
    kept = state["wrappers"]["conv1"]
    assert kept["attributes"]["seen"] == []
    assert kept["buffers"]["total"].tolist() == [0, 0]
    assert kept["buffers"]["weight_mask"].any()
    pruner.load_state_dict(state)
    assert wrapper.seen == []
    wrapper.seen.append(1)
    assert state["wrappers"]["conv1"]["attributes"]["seen"] == []


def test_what_a_subclass_keeps_is_saved_with_it():
    class Counting(Pruner):
        steps = 0

        def calc_mask(self, wrapper):
            return {"weight_mask": torch.ones_like(wrapper.weight)}

        def step(self):
            self.steps += 1

        def get_extra_state(self):
            return {"steps": self.steps}

        def set_extra_state(self, state):
            self.steps = state["steps"]

    model, optimizer, pruner = attached(lambda m, o: Counting(m, HALF, o))
    pruner.compress()
    run(model, optimizer, pruner, range(5))
    _, _, other = attached(lambda m, o: Counting(m, HALF, o))
    other.load_state_dict(through_a_file(pruner.state_dict()))
    assert other.steps == 5


def snapshot(model, pruner):
    return copy.deepcopy((dict(model.state_dict()), pruner.state_dict()))


def wide_state():
    _model, _, pruner = attached(lambda m, o: LevelPruner(m, HALF, o))
    pruner.compress()
    state = pruner.state_dict()
    state["wrappers"]["fc"]["buffers"]["weight_mask"] = torch.ones(5, 90)
    return state


def state_of(cls, entries, **arguments):
    _, _, pruner = attached(lambda m, o: cls(m, entries, o, **arguments))
    pruner.compress()
    return pruner.state_dict()


FOREIGN = {
    "another algorithm": (lambda: state_of(FPGMPruner, HALF), "the state is of fpgm"),
    "other layers": (
        lambda: state_of(LevelPruner, [{"sparsity": 0.5, "op_names": ["fc"]}]),
        'the state has no layer "conv1"',
    ),
    "more layers": (
        lambda: state_of(LevelPruner, [{"sparsity": 0.5, "op_types": ["default", "BatchNorm2d"]}]),
        'layer "bn1" is not configured here',
    ),
    "another shape": (wide_state, r'"fc" weight_mask: \(5, 90\), the layer has \(4, 90\)'),
    "a model's state_dict": (lambda: ConvNet().state_dict(), "load_model_state_dict"),
    "another version": (lambda: {**state_of(LevelPruner, HALF), "version": 99}, "not a state"),
    "cut off": (lambda: {"version": 1}, "not a state"),
    "half a wrapper": (
        lambda: {**state_of(LevelPruner, HALF), "wrappers": {"conv1": {}, "conv2": 1, "fc": None}},
        'layer "conv1" is damaged',
    ),
    "nothing": (lambda: None, "not a state"),
}


@pytest.mark.parametrize(("make", "message"), FOREIGN.values(), ids=FOREIGN.keys())
def test_a_foreign_state_changes_nothing(make, message):
    model, optimizer, pruner = attached(lambda m, o: LevelPruner(m, HALF, o))
    pruner.compress()
    run(model, optimizer, pruner, range(2))
    before = snapshot(model, pruner)
    with pytest.raises(CheckpointError, match=message):
        pruner.load_state_dict(make())
    assert_equal(snapshot(model, pruner), before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("fc.weight"), '"fc.weight" is missing'),
        (lambda s: s.update({"fc.weihgt": torch.zeros(1)}), 'did you mean "fc.weight"'),
        (lambda s: s.update({"fc.weight": torch.zeros(4, 91)}), r"\(4, 91\), the model has"),
        (lambda s: s.update({"fc.weight": [0.0]}), '"fc.weight" is a list, not a tensor'),
    ],
)
def test_a_foreign_model_state_changes_nothing(change, message):
    model, _, pruner = attached(lambda m, o: LevelPruner(m, HALF, o))
    pruner.compress()
    before = snapshot(model, pruner)
    state = dict(ConvNet().state_dict())
    change(state)
    with pytest.raises(CheckpointError, match=message):
        pruner.load_model_state_dict(state)
    assert_equal(snapshot(model, pruner), before)


def test_every_fault_of_a_model_state_is_named_at_once():
    _, _, pruner = attached(lambda m, o: LevelPruner(m, HALF, o))
    state = dict(ConvNet().state_dict())
    del state["fc.bias"]
    state["conv1.weight"] = torch.zeros(2)
    state["extra"] = torch.zeros(1)
    with pytest.raises(CheckpointError) as caught:
        pruner.load_model_state_dict(state)
    assert str(caught.value).splitlines() == [
        "the state_dict does not fit this model; nothing was changed",
        '  "extra" is not in the model',
        '  "fc.bias" is missing',
        '  "conv1.weight": (2,), the model has (6, 1, 3, 3)',
    ]


def test_no_mapping_is_refused_as_model_state():
    _, _, pruner = attached(lambda m, o: LevelPruner(m, HALF, o))
    with pytest.raises(CheckpointError, match="this is a list"):
        pruner.load_model_state_dict([1])


def test_a_loaded_model_state_is_masked_again():
    model, _, pruner = attached(lambda m, o: LevelPruner(m, HALF, o))
    pruner.compress()
    new = ConvNet().state_dict()
    pruner.load_model_state_dict(new)
    mask = pruner.get_modules_wrapper()[2].weight_mask
    assert torch.equal(model.fc.weight, new["fc.weight"] * mask)


def test_masks_of_the_fresh_pruner_take_nothing_from_restored_weights():
    """Its first masks differ from the restored ones, which removed other weights."""

    class Random(Pruner):
        one_shot = True

        def calc_mask(self, wrapper):
            return {"weight_mask": torch.rand_like(wrapper.weight) > 0.5}

    model, _, pruner = attached(lambda m, o: Random(m, HALF, o))
    pruner.compress()
    saved = copy.deepcopy(dict(model.state_dict()))
    state = pruner.state_dict()
    again, _, fresh = attached(lambda m, o: Random(m, HALF, o), saved)
    torch.manual_seed(99)
    fresh.compress()
    assert zeros(again.fc.weight) > zeros(saved["fc.weight"])
    fresh.load_state_dict(state)
    assert_equal(dict(again.state_dict()), saved)


def test_statistics_resume_in_the_middle_of_their_minibatches():
    def make(model, optimizer):
        return TaylorFOWeightFilterPruner(model, HALF, optimizer, statistics_batch_num=3)

    model, optimizer, pruner = attached(make)
    pruner.compress()
    run(model, optimizer, pruner, range(2))
    assert [w.batches for w in pruner.get_modules_wrapper()] == [2, 2, 2]
    _, _, fresh = attached(make)
    fresh.load_state_dict(through_a_file(pruner.state_dict()))
    assert [w.batches for w in fresh.get_modules_wrapper()] == [2, 2, 2]
    for ours, theirs in zip(fresh.get_modules_wrapper(), pruner.get_modules_wrapper(), strict=True):
        assert torch.equal(ours.statistic, theirs.statistic)
