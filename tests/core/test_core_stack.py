"""One provider for each hook, any number of wrappers and watchers; faults are said at once."""

import logging

import pytest
import torch
from models import mlp, train_step, zeros
from torch import nn

from engine import PluginError, Pruner, hookimpl
from engine.algorithms import LevelPruner
from engine.hookspecs import HookSpecs
from engine.plugins.stack import HOOKS, Stack

HALF = [{"sparsity": 0.5, "op_types": ["default"]}]


def prune(*extensions, model=None, cls=LevelPruner):
    model = model or mlp()
    pruner = cls(model, HALF, extensions=extensions)
    pruner.compress()
    return model, pruner


class Provider:
    @hookimpl
    def calc_mask(self, wrapper):
        return {"weight_mask": torch.ones_like(wrapper.weight)}


class Misspelt:
    @hookimpl
    def calc_masks(self, wrapper):
        return None


class MisspeltWrapper:
    @hookimpl(wrapper=True)
    def calc_msk(self, wrapper):
        return (yield)


class NotMarked:
    def update_epoch(self, epoch):
        pass


class WrongArgument:
    @hookimpl
    def update_epoch(self, epcoh, more):
        pass


class WrongArgumentOfAWrapper:
    @hookimpl(wrapper=True)
    def calc_mask(self, wraper):
        return (yield)


@pytest.mark.parametrize(
    ("extension", "message", "hook"),
    [
        (
            Provider,
            "two plugins provide calc_mask: level (engine 0.1.0) and Provider\n"
            "  a stack has one provider for each hook; a schedule or a constraint is a wrapper, "
            "marked @hookimpl(wrapper=True)",
            "calc_mask",
        ),
        (
            Misspelt,
            "Misspelt implements an unknown hook 'calc_masks'\n"
            f"  hooks are: {', '.join(HOOKS)}\n"
            "  did you mean 'calc_mask'?",
            "calc_masks",
        ),
        (
            MisspeltWrapper,
            "MisspeltWrapper implements an unknown hook 'calc_msk'\n"
            f"  hooks are: {', '.join(HOOKS)}\n"
            "  did you mean 'calc_mask'?",
            "calc_msk",
        ),
        (
            NotMarked,
            "the extension NotMarked has no hook\n"
            "  an extension is an object with methods marked @engine.hookimpl",
            None,
        ),
        (
            WrongArgument,
            "WrongArgument.update_epoch takes an argument 'epcoh' that the hook does not have\n"
            "  update_epoch has: epoch\n"
            "  did you mean 'epoch'?",
            "update_epoch",
        ),
        (
            WrongArgumentOfAWrapper,
            "WrongArgumentOfAWrapper.calc_mask takes an argument 'wraper' that the hook does not "
            "have\n"
            "  calc_mask has: wrapper, sparsity, wrapper_idx\n"
            "  did you mean 'wrapper'?",
            "calc_mask",
        ),
    ],
)
def test_a_stack_that_cannot_work_is_refused_when_it_is_built(extension, message, hook):
    model = mlp()
    before = [parameter.clone() for parameter in model.parameters()]
    with pytest.raises(PluginError) as caught:
        prune(extension(), model=model)
    assert str(caught.value) == message
    assert caught.value.hook == hook
    assert caught.value.plugin == extension.__name__
    assert all(map(torch.equal, before, model.parameters()))
    assert "_engine_compressors" not in vars(model)


def test_a_class_is_no_extension():
    with pytest.raises(PluginError, match="the extension Misspelt is a class, not an instance"):
        prune(Misspelt)


def test_a_misspelt_argument_of_an_algorithm():
    class Mine(Pruner):
        def calc_mask(self, wrapper, sparsty):
            return None

    with pytest.raises(PluginError, match=r"(?s)'sparsty' .* did you mean 'sparsity'"):
        prune(cls=Mine)


def test_a_pruner_without_calc_mask():
    class Mine(Pruner):
        def calculate_mask(self, wrapper):
            return None

    with pytest.raises(PluginError) as caught:
        prune(cls=Mine)
    assert str(caught.value) == (
        "Mine has no calc_mask, which every pruner needs\n"
        '  did you mean "calculate_mask" to be calc_mask?'
    )


def test_a_constraint_wraps_calc_mask():
    class KeepsTheFirstRow:
        @hookimpl(wrapper=True)
        def calc_mask(self, wrapper, sparsity):
            masks = yield
            masks["weight_mask"][0] = True
            return masks

    _, pruner = prune(KeepsTheFirstRow())
    for wrapper in pruner.get_modules_wrapper():
        assert wrapper.weight_mask[0].all()
        assert zeros(wrapper.weight_mask) > 0


def test_a_schedule_wraps_sparsity_of_any_pruner():
    class Halved:
        @hookimpl(wrapper=True)
        def sparsity(self, wrapper, epoch):
            return (yield) / 2

    model, _ = prune(Halved())
    assert zeros(model[0].weight) == 20


def test_later_wrappers_enclose_earlier_ones():
    order = []

    class Named:
        def __init__(self, name):
            self.name = name

        @hookimpl(wrapper=True)
        def calc_mask(self):
            order.append(f"{self.name} in")
            result = yield
            order.append(f"{self.name} out")
            return result

    prune(Named("inner"), Named("outer"), model=nn.Linear(2, 2))
    assert order == ["outer in", "inner in", "inner out", "outer out"]


def test_watchers_hear_every_epoch_and_step_once_beside_the_algorithm():
    heard = []

    class Watcher:
        @hookimpl
        def update_epoch(self, epoch):
            heard.append(epoch)

        @hookimpl
        def step(self):
            heard.append("step")

        @hookimpl
        def before_step(self):
            heard.append("before")

        @hookimpl
        def preprocess_model(self, model):
            heard.append(type(model).__name__)

    class Mine(LevelPruner):
        def update_epoch(self, epoch):
            heard.append(("own", epoch))

        def step(self):
            heard.append("own step")

    model, pruner = prune(Watcher(), Watcher(), cls=Mine)
    pruner.update_epoch(3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    train_step(model, optimizer, torch.randn(2, 8))
    pruner.step()
    assert heard[:2] == ["Sequential"] * 2
    assert sorted(map(str, heard[2:])) == sorted(
        ["3", "3", "('own', 3)", "before", "before", "step", "step", "own step"]
    )


def test_a_step_hook_sees_weights_before_masks_are_applied():
    seen = []

    class Watcher:
        @hookimpl
        def step(self):
            seen.append(zeros(model[0].weight))

    class Dense(LevelPruner):
        dense_gradients = True

    model, _ = prune(Watcher(), cls=Dense)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    train_step(model, optimizer, torch.randn(2, 8))
    assert seen[0] < 40
    assert zeros(model[0].weight) == 40


def test_preprocess_model_may_replace_layers_before_they_are_chosen():
    class Widens:
        @hookimpl
        def preprocess_model(self, model):
            model[2] = nn.Linear(10, 6)

    model, pruner = prune(Widens())
    assert [tuple(w.weight.shape) for w in pruner.get_modules_wrapper()] == [(10, 8), (6, 10)]
    assert zeros(model[2].weight) == 30


def test_a_failing_preprocess_model_leaves_nothing_attached():
    from engine.algorithms import ActivationMeanRankFilterPruner

    class Fails:
        @hookimpl
        def preprocess_model(self, model):
            raise RuntimeError("no")

    model = mlp()
    with pytest.raises(PluginError, match="Fails failed in preprocess_model: RuntimeError: no"):
        prune(Fails(), model=model, cls=ActivationMeanRankFilterPruner)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_lone_implementation_is_called_directly():
    class Plain:
        @hookimpl
        def quantize_weight(self, weight, wrapper):
            return weight

    plain = Plain()
    assert Stack([plain]).resolve("quantize_weight") == plain.quantize_weight


def test_every_hook_is_specified_with_a_docstring():
    for name in HOOKS:
        assert getattr(HookSpecs, name).__doc__


# -- masks that are none --------------------------------------------------------------------------


def good(wrapper):
    return torch.ones_like(wrapper.weight)


BAD = {
    "wrong shape": (
        lambda w: {"weight_mask": torch.ones(3, 5)},
        r"returned 'weight_mask' of shape \(3, 5\) for a parameter of shape \(4, 10\)",
    ),
    "NaN": (lambda w: {"weight_mask": good(w) * float("nan")}, "values that are neither 0 nor 1"),
    "half": (lambda w: {"weight_mask": good(w) / 2}, "values that are neither 0 nor 1"),
    "a list": (lambda w: {"weight_mask": [1, 0]}, "returned 'weight_mask' as a list"),
    "no dict": (lambda w: 3, "returned a int"),
    "unknown name": (
        lambda w: {"wieght_mask": good(w)},
        "returned 'wieght_mask', which the layer has no parameter for",
    ),
    "bias of wrong shape": (
        lambda w: {"weight_mask": good(w), "bias_mask": torch.ones(7)},
        r"returned 'bias_mask' of shape \(7,\) for a parameter of shape \(4,\)",
    ),
    "raises": (lambda w: 1 / 0, "failed in calc_mask .*: ZeroDivisionError: division by zero"),
}


class Controlled(Pruner):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.answer = lambda wrapper: {"weight_mask": good(wrapper)}

    def calc_mask(self, wrapper):
        if wrapper.name == "2":
            return self.answer(wrapper)
        mask = good(wrapper)
        mask[0] = 0
        return {"weight_mask": mask}


@pytest.mark.parametrize(("answer", "message"), BAD.values(), ids=BAD.keys())
def test_a_mask_that_is_none_names_plugin_hook_and_layer_and_changes_no_mask(answer, message):
    model, pruner = prune(cls=Controlled)
    wrappers = pruner.get_modules_wrapper()
    masks = [w.weight_mask for w in wrappers]
    copies = [mask.clone() for mask in masks]
    weights = [p.clone() for p in model.parameters()]
    pruner.answer = answer
    with pytest.raises(PluginError, match=message) as caught:
        pruner.update_masks()
    error = caught.value
    assert (error.plugin, error.hook, error.layer) == ("Controlled", "calc_mask", "2")
    assert all(w.weight_mask is m for w, m in zip(wrappers, masks, strict=True))
    assert all(map(torch.equal, masks, copies))
    assert all(map(torch.equal, weights, model.parameters()))
    assert all(w.config["sparsity"] == 0.5 for w in wrappers)


@pytest.mark.parametrize(("answer", "message"), BAD.values(), ids=BAD.keys())
def test_at_compress_the_model_is_left_as_it_was(answer, message):
    class Mine(Controlled):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.answer = answer

    model = mlp()
    weights = [p.clone() for p in model.parameters()]
    with pytest.raises(PluginError, match=message):
        prune(model=model, cls=Mine)
    assert all(map(torch.equal, weights, model.parameters()))
    assert not any(key.startswith("_engine") for m in model.modules() for key in vars(m))
    prune(model=model)


def test_the_pruner_inside_a_schedule_is_named():
    from engine.algorithms import AGPPruner

    class Mine(Controlled):
        def calc_mask(self, wrapper):
            return "mask"

    entries = [{"final_sparsity": 0.5, "end_epoch": 1, "op_types": ["default"]}]
    with pytest.raises(PluginError, match=r"Mine\.calc_mask") as caught:
        AGPPruner(mlp(), entries, pruning_algorithm=Mine).compress()
    assert caught.value.plugin == "Mine"


def test_none_means_not_yet_and_is_asked_again_after_the_next_step():
    class Later(Controlled):
        one_shot = True

    model, pruner = prune(cls=Later)
    pruner.answer = lambda wrapper: None
    for wrapper in pruner.get_modules_wrapper():
        wrapper.sparsity = None
    pruner.update_epoch(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    train_step(model, optimizer, torch.randn(2, 8))
    assert pruner.get_modules_wrapper()[1].sparsity is None
    pruner.answer = lambda wrapper: {"weight_mask": torch.zeros_like(wrapper.weight)}
    train_step(model, optimizer, torch.randn(2, 8))
    assert not model[2].weight.any()


def test_a_mask_may_be_bool_broadcast_or_given_alone():
    class Mine(Pruner):
        def calc_mask(self, wrapper):
            return torch.tensor([True, False])[:, None]

    model, pruner = prune(model=nn.Linear(3, 2), cls=Mine)
    assert pruner.get_modules_wrapper()[0].weight_mask.tolist() == [[1, 1, 1], [0, 0, 0]]
    assert zeros(model.weight) == 3


@pytest.mark.parametrize("answer", [1.5, -0.1, float("nan"), "much", {}, float("inf")])
def test_a_sparsity_that_is_none(answer):
    class Mine(LevelPruner):
        def sparsity(self, wrapper):
            return answer

    with pytest.raises(PluginError, match=r"it must be in \[0, 1\]") as caught:
        prune(cls=Mine)
    assert (caught.value.hook, caught.value.layer) == ("sparsity", "0")


def test_no_sparsity_leaves_the_layer_alone():
    class Mine(LevelPruner):
        def sparsity(self, wrapper):
            return None if wrapper.name == "0" else 0.5

    model, _ = prune(cls=Mine)
    assert (zeros(model[0].weight), zeros(model[2].weight)) == (0, 20)


def test_masks_cannot_be_updated_before_compress():
    with pytest.raises(PluginError, match=r"level: call compress\(\) before masks are updated"):
        LevelPruner(mlp(), HALF).update_masks()


def test_calc_mask_runs_without_gradients_and_quietly(caplog):
    class Mine(Pruner):
        def calc_mask(self, wrapper):
            assert not torch.is_grad_enabled()
            return {"weight_mask": wrapper.weight.abs() > 0}

    with caplog.at_level(logging.DEBUG):
        prune(cls=Mine)
    assert not [record for record in caplog.records if record.name.startswith("engine")]
