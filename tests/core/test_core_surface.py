"""What a compressor and its wrappers offer, to users and to subclasses."""

import pytest
import torch
from models import ConvNet, images, mlp, train_step, zeros
from torch import nn

from engine import ConfigError, EngineError, Pruner, Wrapper, hookimpl
from engine.algorithms import LevelPruner, TaylorFOWeightFilterPruner

HALF = [{"sparsity": 0.5, "op_types": ["default"]}]


class Dense(Pruner):
    """Removes nothing."""

    one_shot = True

    def calc_mask(self, wrapper):
        return {"weight_mask": torch.ones_like(wrapper.weight)}


# -- wrappers -------------------------------------------------------------------------------------


def test_a_wrapper_per_layer_in_the_order_of_the_model():
    model = ConvNet()
    pruner = LevelPruner(model, [{"sparsity": 0.3, "op_types": ["Linear", "Conv2d"]}])
    wrappers = pruner.get_modules_wrapper()
    assert [(w.name, w.type) for w in wrappers] == [
        ("conv1", "Conv2d"),
        ("conv2", "Conv2d"),
        ("fc", "Linear"),
    ]
    assert all(isinstance(w, Wrapper) and w.config["sparsity"] == 0.3 for w in wrappers)
    assert [w.module for w in wrappers] == [model.conv1, model.conv2, model.fc]
    assert [w.weight for w in wrappers] == [model.conv1.weight, model.conv2.weight, model.fc.weight]
    assert pruner.get_modules_to_compress() == [(w, w.config) for w in wrappers]
    assert str(wrappers[0]) == "Wrapper(conv1: Conv2d)"


def test_nothing_changes_before_compress():
    model = ConvNet()
    pruner = LevelPruner(model, HALF)
    assert zeros(model.fc.weight) == 0
    assert pruner.get_modules_wrapper()[0].weight_mask is None


def test_a_mask_looks_like_its_weight():
    model = ConvNet().double()
    pruner = LevelPruner(model, HALF)
    pruner.compress()
    for wrapper in pruner.get_modules_wrapper():
        assert wrapper.weight_mask.shape == wrapper.weight.shape
        assert wrapper.weight_mask.dtype == torch.float64
        assert set(wrapper.weight_mask.unique().tolist()) == {0.0, 1.0}
        assert wrapper.sparsity == 0.5


def test_a_tensor_becomes_a_buffer_of_each_wrapper_saved_with_the_compressor():
    pruner = LevelPruner(mlp(), HALF)
    value = torch.zeros(3, requires_grad=True)
    pruner.set_wrappers_attribute("score", value)
    first, second = pruner.get_modules_wrapper()
    first.score.add_(1)
    assert (second.score.tolist(), value.tolist()) == ([0, 0, 0], [0, 0, 0])
    assert "score" in dict(first.named_buffers())
    state = pruner.state_dict()
    assert state["wrappers"]["0"]["buffers"]["score"].tolist() == [1, 1, 1]
    assert "score" not in "".join(pruner.bound_model.state_dict())


def test_other_values_are_attributes_and_may_change_their_kind():
    pruner = LevelPruner(mlp(), HALF)
    first, second = pruner.get_modules_wrapper()
    pruner.set_wrappers_attribute("if_calculated", False)
    assert first.if_calculated is False
    pruner.set_wrappers_attribute("if_calculated", torch.ones(1))
    assert torch.equal(first.if_calculated, torch.ones(1))
    pruner.set_wrappers_attribute("if_calculated", None)
    assert first.if_calculated is None
    pruner.set_wrappers_attribute("if_calculated", "done")
    assert (first.if_calculated, second.if_calculated) == ("done", "done")


def test_each_wrapper_has_a_list_of_its_own():
    # NNI's own documentation collects activations so, and mixes up the layers.
    pruner = LevelPruner(mlp(), HALF)
    pruner.set_wrappers_attribute("collected", [])
    first, second = pruner.get_modules_wrapper()
    first.collected.append(1)
    assert second.collected == []


# -- collectors -----------------------------------------------------------------------------------


def test_collectors_see_each_forward_of_each_layer_until_they_are_removed():
    model = mlp()
    pruner = LevelPruner(model, HALF)
    pruner.compress()
    seen = []
    first = pruner.add_activation_collector(
        lambda wrapper, inputs, output: seen.append((wrapper.name, inputs[0].shape, output.shape))
    )
    second = pruner.add_activation_collector(lambda *args: seen.append("second"))
    assert first != second
    model(torch.randn(3, 8))
    assert seen == [("0", (3, 8), (3, 10)), "second", ("2", (3, 10), (3, 4)), "second"]
    pruner.remove_activation_collector(second)
    seen.clear()
    model(torch.randn(3, 8))
    assert [name for name, *_ in seen] == ["0", "2"]
    pruner.remove_activation_collector(first)
    model(torch.randn(3, 8))
    assert len(seen) == 2
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("wrong", [0, 7, "1", None])
def test_an_unknown_collector_is_a_value_error(wrong):
    pruner = LevelPruner(mlp(), HALF)
    pruner.add_activation_collector(print)
    with pytest.raises(ValueError, match=r"there is no activation collector .*; there are: \[1\]"):
        pruner.remove_activation_collector(wrong)


def test_a_collector_is_not_removed_twice_nor_its_id_given_away():
    pruner = LevelPruner(mlp(), HALF)
    first = pruner.add_activation_collector(print)
    pruner.remove_activation_collector(first)
    second = pruner.add_activation_collector(print)
    assert second != first
    with pytest.raises(ValueError, match="there is no activation collector"):
        pruner.remove_activation_collector(first)


# -- epochs and steps -----------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [-1, 1.5, "1", None, True])
def test_an_epoch_is_a_number_from_0_on(wrong):
    pruner = LevelPruner(mlp(), HALF)
    with pytest.raises(EngineError, match="update_epoch takes an epoch number from 0 on, got"):
        pruner.update_epoch(wrong)
    assert pruner.epoch == 0


def test_an_epoch_may_be_a_numpy_integer():
    numpy = pytest.importorskip("numpy")
    pruner = LevelPruner(mlp(), HALF)
    pruner.update_epoch(numpy.int64(3))
    assert pruner.epoch == 3
    assert type(pruner.epoch) is int


class Recorder(Dense):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.calls = []


class WithoutSuper(Recorder):
    def update_epoch(self, epoch):
        self.calls.append(("epoch", epoch))

    def step(self):
        self.calls.append("step")


class WithSuper(Recorder):
    def update_epoch(self, epoch):
        super().update_epoch(epoch)
        self.calls.append(("epoch", epoch))

    def step(self):
        super().step()
        self.calls.append("step")


class Marked(Recorder):
    @hookimpl
    def update_epoch(self, epoch):
        self.calls.append(("epoch", epoch))

    @hookimpl
    def step(self):
        self.calls.append("step")


class FewerArguments(Recorder):
    def update_epoch(self):
        self.calls.append(("epoch", self.epoch))

    def step(self):
        self.calls.append("step")


class Mixin:
    def update_epoch(self, epoch):
        self.calls.append(("epoch", epoch))

    def step(self):
        self.calls.append("step")


class Mixed(Mixin, Recorder):
    pass


class Grandchild(WithSuper):
    pass


@pytest.mark.parametrize(
    "cls", [WithoutSuper, WithSuper, Marked, FewerArguments, Mixed, Grandchild]
)
def test_a_subclass_overrides_update_epoch_and_step(cls):
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = cls(model, HALF, optimizer)
    pruner.compress()
    pruner.update_epoch(4)
    train_step(model, optimizer, torch.randn(2, 8))
    pruner.step()
    assert pruner.calls == [("epoch", 4), "step"]
    assert pruner.epoch == 4
    assert pruner._due is False


def test_super_reaches_every_class_in_between():
    class Child(WithSuper):
        def update_epoch(self, epoch):
            super().update_epoch(epoch)
            self.calls.append("child")

        def step(self):
            self.calls.append("child")
            super().step()

    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = Child(model, HALF, optimizer)
    pruner.compress()
    pruner.update_epoch(2)
    train_step(model, optimizer, torch.randn(2, 8))
    assert pruner.calls == [("epoch", 2), "child", "child", "step"]


def test_a_built_in_algorithm_is_extended_through_super():
    class Mine(TaylorFOWeightFilterPruner):
        def update_epoch(self, epoch):
            super().update_epoch(epoch)
            self.told = epoch

    model = ConvNet()
    pruner = Mine(model, HALF, statistics_batch_num=1)
    pruner.compress()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    train_step(model, optimizer, images())
    assert pruner.get_modules_wrapper()[0].batches == 1
    pruner.update_epoch(1)
    assert pruner.get_modules_wrapper()[0].batches == 0
    assert pruner.told == 1


def test_a_subclass_inside_a_schedule_hears_of_epochs_and_steps():
    from engine.algorithms import AGPPruner

    model = mlp()
    entries = [{"final_sparsity": 0.5, "end_epoch": 2, "op_types": ["default"]}]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = AGPPruner(model, entries, optimizer, pruning_algorithm=WithSuper)
    pruner.compress()
    pruner.update_epoch(1)
    train_step(model, optimizer, torch.randn(2, 8))
    assert pruner.base.calls == [("epoch", 1), "step"]


# -- algorithms as they are written for NNI --------------------------------------------------------


class Masker:
    """Where what to remove and when are kept apart."""

    def calc_mask(self, sparsity, wrapper, wrapper_idx=None):
        weight = wrapper.module.weight.data.abs()
        count = int(weight.numel() * sparsity)
        if count == 0:
            return {"weight_mask": torch.ones_like(weight)}
        threshold = torch.topk(weight.flatten(), count, largest=False)[0].max()
        return {"weight_mask": torch.gt(weight, threshold).type_as(weight)}


class Delegating(Pruner):
    def __init__(self, model, config_list, optimizer=None):
        super().__init__(model, config_list, optimizer)
        self.masker = Masker()
        self.set_wrappers_attribute("if_calculated", False)

    def calc_mask(self, wrapper, wrapper_idx=None):
        if wrapper.if_calculated:
            return None
        wrapper.if_calculated = True
        return self.masker.calc_mask(wrapper.config["sparsity"], wrapper, wrapper_idx)


class ByKeywords(Pruner):
    def calc_mask(self, wrapper, **kwargs):
        self.given = kwargs
        return Masker().calc_mask(wrapper.config["sparsity"], wrapper)


@pytest.mark.parametrize("cls", [Delegating, ByKeywords])
def test_an_algorithm_from_nni(cls):
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    pruner = cls(model, HALF, optimizer)
    pruner.compress()
    for _ in range(3):
        train_step(model, optimizer, torch.randn(5, 8))
        assert zeros(model[0].weight) == 40
    if cls is ByKeywords:
        assert pruner.given == {"sparsity": 0.5, "wrapper_idx": 1}


def test_arguments_of_ones_own_become_attributes():
    pruner = Dense(mlp(), HALF, temperature=0.3)
    assert pruner.temperature == 0.3


def test_the_model_must_be_one():
    with pytest.raises(ConfigError, match="model is a list") as caught:
        LevelPruner([1], HALF)
    assert caught.value.problems[0].pointer == "/model"


def test_a_configuration_that_excludes_everything_is_refused():
    entries = [*HALF, {"exclude": True, "op_types": ["default"]}]
    with pytest.raises(ConfigError, match="nothing is left to compress"):
        LevelPruner(mlp(), entries)


def test_a_layer_without_bias():
    model = nn.Linear(4, 4, bias=False)
    pruner = LevelPruner(model, HALF)
    pruner.compress()
    assert pruner.get_modules_wrapper()[0].bias is None
