"""The exported program computes what the fake-quantized model does."""

import copy
import io

import pytest
import torch
from integers import Residual, program_of, quantized, step_of_input
from models import ConvNet, images, mlp
from torch import nn

from engine import ExportError, Quantizer
from engine.algorithms import LevelPruner, PTQQuantizer, QAT_Quantizer
from engine.export.integer_program import integer_program


def perceptron_input(count=32):
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ["qat", "ptq", "lsq", "lsq_plus"])
@pytest.mark.parametrize("bits", [8, 3])
@pytest.mark.parametrize("weights", ["per_tensor_symmetric", "per_channel_symmetric"])
def test_a_perceptron_gives_the_same_outputs(name, bits, weights):
    model, x = mlp(), perceptron_input()
    quantizer = quantized(model, x, name, bits=bits, weights=weights)
    output, _ = program_of(quantizer, x)
    # A hidden value between two integers may be rounded to the other: biases are integers, too.
    near = torch.isclose(output, model(x), rtol=1e-4, atol=1e-5)
    assert near.float().mean() > 0.8
    largest = 3 * step_of_input(quantizer, "2") * model[2].weight.abs().max()
    assert (output - model(x)).abs().max() <= largest


@pytest.mark.parametrize("weights", ["per_tensor_affine", "per_channel_affine", "per_group_affine"])
@pytest.mark.parametrize("fold", ["none", "fused"])
def test_norms_are_folded_whether_training_did_or_not(weights, fold):
    model, x = ConvNet(), images(12)
    with torch.no_grad():
        model.bn1.weight.mul_(torch.tensor([1, -2, 0.5, -1, 1, 3.0]))  # two turn signs
    quantizer = quantized(model, x, kinds=("weight",), weights=weights, fold_batch_norm=fold)
    exported = integer_program(quantizer, x)
    module = exported.program.module()
    torch.testing.assert_close(module(x), model(x), rtol=1e-4, atol=1e-5)
    assert not any("batch_norm" in str(node.target) for node in module.graph.nodes)


def test_a_norm_behind_a_quantized_output_stays():
    model, x = ConvNet(), images(12)
    quantizer = quantized(model, x, kinds=("weight", "output"))
    exported = integer_program(quantizer, x)
    torch.testing.assert_close(exported.program.module()(x), model(x), rtol=1e-4, atol=1e-4)


def test_weights_are_held_as_int8_under_their_own_names():
    model, x = ConvNet(), images(12)
    state = integer_program(quantized(model, x), x).program.state_dict
    assert {state[f"{name}.weight"].dtype for name in ("conv1", "conv2", "fc")} == {torch.int8}
    assert state["conv1.weight"].shape == model.conv1.weight.shape


def test_a_program_is_saved_and_loaded_and_takes_any_batch():
    model, x = mlp(), perceptron_input()
    exported = integer_program(quantized(model, x), x[:1])
    stream = io.BytesIO()
    torch.export.save(exported.program, stream)
    stream.seek(0)
    loaded = torch.export.load(stream).module()
    for count in (2, 7, 32):
        assert torch.equal(loaded(x[:count]), exported.program.module()(x[:count]))


def test_the_model_is_left_as_it_was():
    model, x = Residual(), torch.randn(6, 3, 6, 6)
    quantizer = quantized(model, x, fold_batch_norm="fused")
    model.train()
    state = copy.deepcopy(model.state_dict())
    own = copy.deepcopy(quantizer.state_dict())
    program_of(quantizer, x, [x])
    assert model.training
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key]), key
    for name, wrapper in own["wrappers"].items():
        for key, value in wrapper["buffers"].items():
            now = quantizer.state_dict()["wrappers"][name]["buffers"][key]
            assert value is now is None or torch.equal(value, now)


@pytest.mark.parametrize("pruner_first", [True, False])
def test_zeros_of_a_pruner_are_integer_zeros(pruner_first):
    model, x = mlp(8, 16, 4), perceptron_input()
    pruning = {"sparsity": 0.5, "op_types": ["Linear"]}
    if pruner_first:
        LevelPruner(model, [pruning]).compress()
    quantizer = quantized(model, x)
    if not pruner_first:
        LevelPruner(model, [pruning]).compress()
    model.eval()
    exported = integer_program(quantizer, x)
    weight = exported.program.state_dict["0.weight"]
    assert torch.equal(weight == 0, model[0].weight == 0)
    assert (weight == 0).float().mean() >= 0.5
    torch.testing.assert_close(exported.program.module()(x), model(x), rtol=1e-2, atol=1e-2)


def test_it_works_after_speedup():
    from engine.algorithms import L1FilterPruner

    model, x = ConvNet(), images(12)
    pruner = L1FilterPruner(model, [{"sparsity": 0.5, "op_names": ["conv1"]}])
    pruner.compress()
    pruner.update_epoch(0)
    model.eval()
    pruner.apply_speedup(x)
    quantizer = quantized(model, x)
    exported = integer_program(quantizer, x)
    assert exported.program.state_dict["conv1.weight"].shape[0] == 3
    output = exported.program.module()(x)
    torch.testing.assert_close(output, model(x), rtol=1e-2, atol=2e-2)


def test_inputs_by_keyword_and_several_of_them():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, a, b):
            return self.fc(a) + b

    model, a, b = Two(), torch.randn(5, 4), torch.randn(5, 3)
    quantizer = QAT_Quantizer(model, [{"op_types": ["Linear"], "quant_types": ["weight"],
                                       "quant_bits": 8}])  # fmt: skip
    quantizer.compress()
    model.eval()
    for example in ((a, b), {"a": a, "b": b}):
        program = integer_program(quantizer, example).program.module()
        output = program(*example) if isinstance(example, tuple) else program(**example)
        torch.testing.assert_close(output, model(a, b), rtol=1e-4, atol=1e-5)


# -- what is refused -----------------------------------------------------------------------------


def test_an_activation_without_a_range_is_named():
    model = mlp()
    quantizer = QAT_Quantizer(model, [{"op_types": ["Linear"], "quant_types": ["weight", "input"],
                                       "quant_bits": 8}])  # fmt: skip
    quantizer.compress()
    with pytest.raises(ExportError, match='the input of layer "0" has no range yet'):
        integer_program(quantizer, perceptron_input())


@pytest.mark.parametrize("kind", ["weight", "input"])
def test_sixteen_bits_are_refused_by_name(kind):
    model, x = mlp(), perceptron_input()
    quantizer = quantized(model, x, kinds=(kind,), bits=16)
    with pytest.raises(ExportError) as caught:
        integer_program(quantizer, x)
    assert f'the {kind} of layer "0"' in str(caught.value)
    assert 'fewer "quant_bits", at most 8, or exclude it' in str(caught.value)


def test_a_quantizer_without_a_grid_is_refused():
    class Rounding(Quantizer):
        def quantize_weight(self, weight, wrapper):
            return weight.round()

    model = mlp()
    quantizer = Rounding(model, [{"op_types": ["Linear"], "quant_types": ["weight"],
                                  "quant_bits": 8}])  # fmt: skip
    quantizer.compress()
    with pytest.raises(ExportError, match='has no affine form for the weight of layer "0"'):
        integer_program(quantizer, perceptron_input())


def test_half_precision_is_refused():
    model = mlp().bfloat16()
    quantizer = quantized(model, perceptron_input().bfloat16())
    with pytest.raises(ExportError, match=r'layer "0" is torch.bfloat16.*\n.*model.float\(\)'):
        integer_program(quantizer, perceptron_input().bfloat16())


class Text(nn.Module):
    """The mean of a text's embedded tokens, by position too, as a sentence encoder has it."""

    def __init__(self):
        super().__init__()
        self.tokens, self.places = nn.Embedding(20, 8), nn.Embedding(32, 8)
        self.hidden, self.out = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, ids, mask):
        x = self.tokens(ids) + self.places(torch.arange(ids.shape[1]))
        x = self.hidden(x).relu() * mask.unsqueeze(2)
        return self.out(x.sum(1) / mask.sum(1, keepdim=True))


class FixedText(Text):
    """One that has the length in its code: positions are a buffer of that size."""

    def __init__(self):
        super().__init__()
        self.register_buffer("order", torch.arange(6))

    def forward(self, ids, mask):
        return super().forward(ids + 0 * self.order, mask)


@pytest.mark.parametrize("cls", [Text, FixedText])
def test_texts_of_other_lengths_are_taken_where_the_model_takes_them(cls):
    def inputs(batch, length):
        mask = torch.ones(batch, length, dtype=torch.long)
        mask[0, length // 2 :] = 0
        return torch.randint(0, 20, (batch, length)), mask

    model = cls().eval()
    config = {"op_types": ["Linear"], "quant_types": ["weight", "input"], "quant_bits": 8}
    quantizer = PTQQuantizer(model, [config], dummy_input=inputs(2, 6))
    quantizer.compress()
    ids, mask = inputs(8, 6)
    quantizer.calibrate([{"ids": ids, "mask": mask}])
    program = integer_program(quantizer, inputs(2, 6)).program.module()
    for batch, length in ((2, 6), (5, 6), (3, 11), (2, 4)):
        if cls is FixedText and length != 6:
            continue
        example = inputs(batch, length)
        difference = (program(*example) - model(*example)).abs().max()
        assert difference <= 2 * step_of_input(quantizer, "out")
