"""Quantizers that a user writes: which gradient counts, old signatures, clear errors."""

import pytest
import torch
from models import mlp
from torch import nn

from engine import PluginError, QuantGrad, Quantizer, QuantType, hookimpl
from engine.algorithms import DoReFaQuantizer, LSQQuantizer, PTQQuantizer, QAT_Quantizer

ALL = ["weight", "input", "output"]


class Rounding(Quantizer):
    """What a beginner writes: values are rounded, nothing is said about gradients."""

    def quantize_weight(self, weight, wrapper):
        return weight.round()

    def quantize_input(self, input, wrapper):
        return input.round()

    def quantize_output(self, output, wrapper):
        return output.round()


class ClipGrad(QuantGrad):
    @staticmethod
    def quant_backward(tensor, grad_output, quant_type, scale, zero_point, qmin, qmax):
        return grad_output * (tensor.abs() <= 1)


class ByHook(Rounding):
    def quant_backward(self, tensor, grad_output):
        return grad_output * (tensor.abs() <= 1)


class ByClass(Rounding):
    quant_grad = ClipGrad


class ByInstance(Rounding):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.quant_grad = ClipGrad


class ByApply(Rounding):
    """As algorithms for NNI do it."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.quant_grad = ClipGrad.apply


def attach(cls, model, *kinds, bits=8, op_types=("Linear",), **options):
    entry = {"quant_types": list(kinds), "quant_bits": bits, "op_types": list(op_types)}
    quantizer = cls(model, [entry], **options)
    quantizer.compress()
    return quantizer


def weight_gradient(cls, values, **options):
    """The gradient of a 1 x n weight whose quantized value has the gradient 1, 2, 3, ..."""
    model = nn.Sequential(nn.Linear(len(values), 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([values]))
    attach(cls, model, "weight", **options)
    model(torch.arange(1.0, len(values) + 1)[None]).sum().backward()
    return model[0]._parameters["weight"].grad[0].tolist()


def test_the_straight_through_estimator_is_the_default():
    assert weight_gradient(Rounding, [0.4, 1.7, -3.0]) == [1, 2, 3]


@pytest.mark.parametrize("cls", [ByHook, ByClass, ByInstance, ByApply])
def test_the_gradient_can_be_given_in_four_ways(cls):
    assert weight_gradient(cls, [0.4, 1.7, -1.0]) == [1, 0, 3]


@pytest.mark.parametrize("cls", [ByHook, ByClass, ByInstance, ByApply])
@pytest.mark.parametrize("kind", ["input", "output"])
def test_it_counts_for_activations_too(cls, kind):
    model = nn.Sequential(nn.Identity())
    attach(cls, model, kind, op_types=["Identity"])
    batch = torch.tensor([0.4, 1.7, -1.0], requires_grad=True)
    result = model(batch)
    assert result.tolist() == [0, 2, -1]
    result.sum().backward()
    assert batch.grad.tolist() == [1, 0, 1]


def test_what_a_subclass_says_later_counts():
    class Doubling(QuantGrad):
        @staticmethod
        def quant_backward(tensor, grad_output, quant_type, scale, zero_point, qmin, qmax):
            return 2 * grad_output

    class ThenGrad(ByHook):
        quant_grad = Doubling

    class ThenHook(ByClass):
        def quant_backward(self, grad_output):
            return 3 * grad_output

    assert weight_gradient(ThenGrad, [0.4, 1.7]) == [2, 4]
    assert weight_gradient(ThenHook, [0.4, 1.7]) == [3, 6]


def test_a_built_in_algorithm_can_be_given_another_gradient():
    class ByMethod(QAT_Quantizer):
        def quant_backward(self, tensor, grad_output):
            return grad_output * (tensor.abs() <= 1)

    class ByGrad(QAT_Quantizer):
        quant_grad = ClipGrad

    class OfDoReFa(DoReFaQuantizer):
        quant_grad = ClipGrad

    class OfLSQ(LSQQuantizer):
        def quant_backward(self, tensor, grad_output):
            return grad_output * (tensor.abs() <= 1)

    class OfPTQ(PTQQuantizer):
        quant_grad = ClipGrad

    assert weight_gradient(QAT_Quantizer, [0.4, 1.7, -1.0]) == [1, 2, 3]
    for cls in (ByMethod, ByGrad, OfDoReFa, OfLSQ, OfPTQ):
        assert weight_gradient(cls, [0.4, 1.7, -1.0]) == [1, 0, 3]


def test_the_gradient_hook_is_told_what_the_quantizer_stored():
    seen = {}

    class Telling(QAT_Quantizer):
        def quant_backward(
            self, tensor, grad_output, quant_type, wrapper, scale, zero_point, qmin, qmax
        ):
            seen[quant_type] = (wrapper.name, scale.item(), zero_point.item(), qmin, qmax)
            return grad_output

    model = nn.Sequential(nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[-1.0, 0.5]]))
    attach(Telling, model, "weight", "input", bits=4)
    model(torch.tensor([[0.0, 3.0]], requires_grad=True)).sum().backward()
    assert seen[QuantType.WEIGHT] == ("0", pytest.approx(0.1), 10, 0, 15)
    assert seen[QuantType.INPUT] == ("0", pytest.approx(0.2), 0, 0, 15)


def test_an_extension_can_give_the_gradient():
    class Halved:
        @hookimpl
        def quant_backward(self, grad_output):
            return grad_output / 2

    assert weight_gradient(Rounding, [2.0, 4.0], extensions=[Halved()]) == [0.5, 1]
    assert weight_gradient(QAT_Quantizer, [2.0, 4.0], extensions=[Halved()]) == [0.5, 1]


def test_an_extension_can_wrap_how_weights_are_quantized():
    class Halved:
        @hookimpl(wrapper=True)
        def quantize_weight(self):
            return (yield) / 2

    model = nn.Sequential(nn.Linear(2, 1, bias=False))
    nn.init.constant_(model[0].weight, 2.6)
    attach(Rounding, model, "weight", extensions=[Halved()])
    assert model[0].weight.tolist() == [[1.5, 1.5]]


def test_nnis_signatures_work():
    class OfNNI(Quantizer):
        def quantize_weight(self, wrapper, **kwargs):
            assert kwargs["weight"] is wrapper.module._parameters["weight"]
            return kwargs["weight"].round()

        def quantize_input(self, *inputs, wrapper, **kwargs):
            assert len(inputs) == 1
            return inputs[0].round()

        def quantize_output(self, output, wrapper, **kwargs):
            return output.round()

    model = nn.Sequential(nn.Linear(2, 1, bias=False))
    nn.init.constant_(model[0].weight, 1.6)
    attach(OfNNI, model, *ALL)
    assert model(torch.tensor([[0.7, 1.2]])).tolist() == [[4]]


def test_nnis_quantize_input_may_return_the_tuple():
    class OfNNI(Quantizer):
        def quantize_input(self, *inputs, wrapper, **kwargs):
            return tuple(value.round() for value in inputs)

    model = nn.Sequential(nn.Identity())
    attach(OfNNI, model, "input", op_types=["Identity"])
    assert model(torch.tensor([0.7, 1.2])).tolist() == [1, 1]


def test_a_missing_method_is_named_with_the_layer_that_needs_it():
    class OnlyWeights(Quantizer):
        def quantize_weight(self, weight):
            return weight

    with pytest.raises(PluginError) as caught:
        attach(OnlyWeights, mlp(), "output")
    assert str(caught.value) == (
        'OnlyWeights has no quantize_output, which quant_types ["output"] of layer "0" needs'
    )


def test_a_misspelt_method_is_found_where_one_is_missing():
    class Misspelt(Quantizer):
        def quantise_weight(self, weight):
            return weight

    with pytest.raises(PluginError) as caught:
        attach(Misspelt, mlp(), "weight")
    assert str(caught.value).endswith(
        'needs\n  it has quantise_weight: did its author mean "quantize_weight"?'
    )


@pytest.mark.parametrize(
    ("result", "got"),
    [(None, "a NoneType"), (torch.zeros(3), "a tensor of shape (3,)"), (1.0, "a float")],
)
def test_a_result_that_cannot_be_the_weight_is_named(result, got):
    class Wrong(Quantizer):
        def quantize_weight(self, weight):
            return result

    model = nn.Sequential(nn.Linear(2, 1))
    attach(Wrong, model, "weight")
    with pytest.raises(PluginError) as caught:
        model(torch.zeros(1, 2))
    assert str(caught.value) == (
        f'Wrong.quantize_weight for layer "0" (Linear) returned {got}\n'
        "  it must return a tensor of shape (1, 2), the quantized values"
    )
    assert caught.value.layer == "0"


def test_a_result_in_another_dtype_is_cast_back():
    class Widening(Quantizer):
        def quantize_weight(self, weight):
            return weight.double().round()

    model = nn.Sequential(nn.Linear(2, 1))
    attach(Widening, model, "weight")
    assert model[0].weight.dtype == torch.float32
    assert model(torch.zeros(1, 2)).dtype == torch.float32


def test_integers_and_what_is_no_tensor_pass():
    class Odd(nn.Module):
        def forward(self, tokens, scale, flag=None):
            assert tokens.dtype == torch.int64
            assert flag == "as it was"
            return {"values": [tokens * scale], "tokens": tokens}

    model = nn.Sequential()
    model.add_module("odd", Odd())
    attach(Rounding, model, "input", "output", op_types=["Odd"])
    result = model.odd(torch.tensor([1, 2]), torch.tensor(1.7), flag="as it was")
    assert result["values"][0].tolist() == [2, 4]
    assert result["tokens"].tolist() == [1, 2]


def test_a_second_quantizer_on_a_layer_is_refused_and_the_first_stays():
    model = mlp()
    attach(Rounding, model, "weight")
    second = Rounding(model, [{"quant_types": ["weight"], "quant_bits": 8, "op_types": ["Linear"]}])
    with pytest.raises(PluginError) as caught:
        second.compress()
    assert str(caught.value) == 'layer "0" is already quantized; unwrap() that quantizer first'
    assert torch.equal(model[0].weight, model[0]._parameters["weight"].round())
    assert torch.equal(model[2].weight, model[2]._parameters["weight"].round())
