"""Hooks and methods as the manuals of NNI and Auptimizer write them."""

import copy
import pickle

import pytest
import torch
from models import mlp
from torch import nn

import engine
from engine import Pruner, QuantGrad, Quantizer, QuantType

ENTRY = [{"op_types": ["Linear"], "sparsity": 0.5}]
QUANTIZED = [{"op_types": ["Linear"], "quant_types": ["weight", "output"], "quant_bits": 8}]


def half(weight):
    return (torch.arange(weight.numel()) % 2).view_as(weight).to(weight)


class ByConfig(Pruner):
    """``calc_mask(self, layer, config)``: the layer's entry instead of the fraction."""

    def calc_mask(self, layer, config):
        assert (layer.name, config["sparsity"]) == ("0", 0.5)
        return {"weight_mask": half(layer.module.weight)}

    def update_epoch(self, epoch_num):
        self.heard = epoch_num


class ByWeight(Pruner):
    """``calc_mask(self, weight, config, **kwargs)`` of NNI's first release: a bare mask."""

    def calc_mask(self, weight, config, **kwargs):
        return half(weight)


@pytest.mark.parametrize("cls", [ByConfig, ByWeight])
def test_a_pruner_gets_the_layer_and_its_entry_by_their_old_names(cls):
    model = nn.Sequential(nn.Linear(4, 4))
    pruner = cls(model, ENTRY)
    pruner.compress()
    assert torch.equal(model[0].weight != 0, half(model[0].weight) != 0)
    pruner.update_epoch(3)
    assert getattr(pruner, "heard", 3) == 3
    assert pruner.epoch == 3


class Rounded(Quantizer):
    """``quantize_weight(self, weight, config, **kwargs)``."""

    def quantize_weight(self, weight, config, **kwargs):
        assert config["quant_bits"] == 8
        return (weight * 8).round() / 8

    def quantize_output(self, output, wrapper, **kwargs):
        return (output * 8).round() / 8


class OfOldWeight(Rounded):
    """NNI 2.0's own: the weight is read from the layer, and put there."""

    def quantize_weight(self, wrapper, **kwargs):
        assert isinstance(wrapper.module, nn.Linear)
        weight = copy.deepcopy(wrapper.module.old_weight.data)
        wrapper.module.weight = weight = (weight * 8).round() / 8
        assert torch.equal(wrapper.module.weight, weight)
        wrapper.times = getattr(wrapper, "times", 0) + 1
        return weight


class OfLayer(Rounded):
    """The layer's weight is the plain one, not what is being computed."""

    def quantize_weight(self, wrapper):
        return (wrapper.module.weight * 8).round() / 8


@pytest.mark.parametrize("cls", [Rounded, OfOldWeight, OfLayer])
def test_a_quantizer_reads_the_weight_as_it_was_written_for_nni(cls):
    model = mlp()
    before = model[0].weight.detach().clone()
    quantizer = cls(model, QUANTIZED)
    quantizer.compress()
    assert torch.equal(model[0].weight, (before * 8).round() / 8)
    model(torch.randn(2, before.shape[1])).sum().backward()
    assert model[0]._parameters["weight"].grad is not None
    if cls is OfOldWeight:
        assert quantizer.get_modules_wrapper()[0].times > 0
    quantizer.unwrap()
    assert torch.equal(model[0].weight, before)


class ClipGrad(QuantGrad):
    """The manuals' own: three arguments, changed in place."""

    @staticmethod
    def quant_backward(tensor, grad_output, quant_type):
        if quant_type == QuantType.QUANT_OUTPUT:
            grad_output = grad_output.clone()
            grad_output[tensor.abs() > 0.1] = 0
        return grad_output


class Clipped(Rounded):
    def __init__(self, *args):
        super().__init__(*args)
        self.quant_grad = ClipGrad


def test_a_gradient_of_three_arguments_is_the_formulas():
    linear = nn.Linear(4, 4)
    model, x = nn.Sequential(linear), torch.randn(8, 4)
    output = linear(x).detach()
    Clipped(model, [{**QUANTIZED[0], "quant_types": ["output"]}]).compress()
    model(x).sum().backward()
    expected = ((output.abs() <= 0.1).double().T @ x.double()).float()
    assert torch.allclose(linear.weight.grad, expected)
    assert pickle.loads(pickle.dumps(model))(x).shape == (8, 4)


def test_a_gradient_of_unknown_arguments_is_refused_when_it_is_attached():
    class Other(ClipGrad):
        @staticmethod
        def quant_backward(tensor, grad_outptu, quant_type):
            return grad_outptu

    class Faulty(Rounded):
        quant_grad = Other

    fault = r"'grad_outptu'.+\n.+\n  did you mean 'grad_output'"
    with pytest.raises(engine.PluginError, match=fault):
        Faulty(mlp(), QUANTIZED).compress()


class NoSuper(Pruner):
    """The first manual's own snippet."""

    def __init__(self, your_input):
        pass

    def calc_mask(self, wrapper):
        return None


@pytest.mark.parametrize("use", [lambda p: p.compress(), lambda p: p.get_modules_wrapper()])
def test_a_subclass_without_super_init_is_told_so(use):
    with pytest.raises(engine.EngineError, match=r"NoSuper has no \w+: its __init__ does not call"):
        use(NoSuper(3))
    assert not hasattr(NoSuper(3), "anything_else")


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (torch.optim.SGD, "optimizer is the class SGD\n  needs: SGD.model.parameters"),
        (lambda model: 0.5, r"optimizer is the function <lambda>\n  needs: .+ evaluator=\.\.\."),
        (3, "optimizer is a int"),
    ],
)
def test_what_is_no_optimizer_says_what_is_meant(optimizer, message):
    with pytest.raises(engine.ConfigError, match=message):
        engine.algorithms.LevelPruner(mlp(), ENTRY, optimizer)


def test_an_argument_of_another_tool_is_named_with_what_to_write():
    with pytest.raises(engine.ConfigError) as caught:
        engine.algorithms.L1FilterPruner(mlp(), ENTRY, trainer=print, total_sparsity=0.5)
    said = {problem.pointer: problem for problem in caught.value.problems}
    assert said["/trainer"].message == 'unknown argument "trainer"'
    assert said["/trainer"].allowed.startswith("here that is: your own loop")
    assert "global_ranking" in said["/total_sparsity"].allowed


@pytest.mark.parametrize("module", ["algorithms", "extensions"])
def test_a_name_that_no_plugin_has_is_an_import_or_an_attribute_error(module):
    names = getattr(engine, module)
    assert not hasattr(names, "LevelPrunr")
    with pytest.raises(AttributeError, match=r'unknown .+ "LevelPrunr"'):
        _ = names.LevelPrunr
    with pytest.raises(ImportError, match=r'unknown .+ "LevelPrunr"'):
        exec(f"from engine.{module} import LevelPrunr")


def test_everything_that_can_be_loaded_is_imported_by_a_star():
    namespace = {}
    exec("from engine.algorithms import *", namespace)
    assert namespace["LevelPruner"] is engine.algorithms.LevelPruner
    assert set(dir(engine.algorithms)) <= namespace.keys()
