"""The model stays the user's while it is quantized, in every way that PyTorch offers."""

import copy
import pickle

import pytest
import torch
from models import ConvNet, TiedLanguageModel, images, mlp, train_step
from torch import nn

from engine import ConfigError
from engine.algorithms import (
    BNNQuantizer,
    DoReFaQuantizer,
    LSQPlusQuantizer,
    LSQQuantizer,
    NaiveQuantizer,
    PTQQuantizer,
    QAT_Quantizer,
)

KINDS = {
    "naive": (NaiveQuantizer, ["weight"], 4),
    "qat": (QAT_Quantizer, ["weight", "input", "output"], 4),
    "dorefa": (DoReFaQuantizer, ["weight", "input", "gradient"], 2),
    "bnn": (BNNQuantizer, ["weight", "output"], 1),
    "lsq": (LSQQuantizer, ["weight", "input"], 4),
    "lsq_plus": (LSQPlusQuantizer, ["weight", "input", "output"], 4),
    "ptq": (PTQQuantizer, ["weight", "input"], 4),
}


def attach(algorithm, model, *kinds, op_types=None):
    if op_types is None:
        present = {type(layer).__name__ for layer in model.modules()}
        op_types = sorted(present & {"Conv2d", "Linear"})
    cls, all_kinds, bits = KINDS[algorithm]
    entry = {
        "quant_types": list(kinds or all_kinds),
        "quant_bits": bits,
        "op_types": op_types,
    }
    if algorithm == "ptq":  # whose default has more than 2^bits values in all channels together
        entry["quant_scheme"] = "per_tensor_affine"
    quantizer = cls(model, [entry], **({"fold_batch_norm": False} if algorithm == "ptq" else {}))
    quantizer.compress()
    return quantizer


@pytest.fixture(params=KINDS)
def algorithm(request):
    return request.param


@pytest.fixture
def trained(algorithm):
    """A quantized model that has seen one batch, and its quantizer."""
    model = ConvNet()
    quantizer = attach(algorithm, model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    train_step(model, optimizer, images())
    if algorithm == "ptq":
        quantizer.calibrate([images()])
    return model, quantizer


@pytest.fixture
def small(algorithm):
    """The same, as small as it gets, for what is slow on every layer."""
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU())
    quantizer = attach(algorithm, model)
    model(torch.rand(3, 5))
    if algorithm == "ptq":
        quantizer.calibrate([torch.rand(3, 5)])
    return model, quantizer


def levels(tensor: torch.Tensor) -> int:
    return len(tensor.unique())


def test_classes_and_their_names_stay(trained):
    model, _ = trained
    assert isinstance(model.conv1, nn.Conv2d)
    assert type(model.conv1).__name__ == "Conv2d"
    assert type(model.conv1).__module__ == nn.Conv2d.__module__
    assert model.conv1.out_channels == 6
    assert "Conv2d(1, 6" in repr(model)
    assert isinstance(model._modules["conv1"], nn.Conv2d)


def test_unwrap_leaves_the_model_as_it_was_found(algorithm):
    model = ConvNet()
    before = copy.deepcopy(model)
    parameters = list(map(id, model.parameters()))
    quantizer = attach(algorithm, model)
    model.eval()
    model(images())
    quantizer.unwrap()
    assert list(map(id, model.parameters())) == parameters
    for (name, layer), plain in zip(model.named_modules(), before.modules(), strict=True):
        assert type(layer) is type(plain), name
        assert vars(layer).keys() == vars(plain).keys(), name
        assert not layer._forward_hooks, name
        assert not layer._forward_pre_hooks, name
    before.eval()
    assert torch.equal(model(images()), before(images()))


def test_it_can_be_attached_again_after_unwrap(algorithm):
    model = ConvNet()
    quantizer = attach(algorithm, model)
    quantizer.unwrap()
    quantizer.compress()
    assert levels(model.conv2.weight) <= 16


def test_bake_leaves_the_quantized_weights(trained):
    model, quantizer = trained
    quantized = {name: getattr(model, name).weight.detach().clone() for name in ("conv1", "fc")}
    quantizer.unwrap(bake=True)
    for name, weight in quantized.items():
        assert type(getattr(model, name).weight) is nn.Parameter
        assert torch.equal(getattr(model, name).weight, weight)


def test_bake_quantizes_a_shared_weight_once():
    # The tanh of DoReFa makes other values of values that were quantized before.
    model = TiedLanguageModel()
    entry = {"quant_types": ["weight"], "quant_bits": 6, "op_types": ["Embedding", "Linear"]}
    quantizer = DoReFaQuantizer(model, [entry])
    quantizer.compress()
    quantized = model.decoder.weight.detach().clone()
    quantizer.unwrap(bake=True)
    assert torch.equal(model.decoder.weight, quantized)
    assert model.decoder.weight is model.embedding.weight


def test_tied_weights_stay_tied_and_both_layers_use_the_quantized_value(algorithm):
    model = TiedLanguageModel()
    attach(algorithm, model, "weight", op_types=["Embedding", "Linear"])
    tokens = torch.tensor([[1, 2, 3]])
    assert model.decoder._parameters["weight"] is model.embedding._parameters["weight"]
    assert torch.equal(model.decoder.weight, model.embedding.weight)
    assert torch.equal(model.embedding(tokens)[0], model.decoder.weight[1:4])
    model(tokens).sum().backward()
    assert len(list(model.parameters())) == 4
    assert model.embedding._parameters["weight"].grad is not None


def test_a_copy_computes_the_same_and_goes_its_own_way(trained):
    model, quantizer = trained
    other = copy.deepcopy(model)
    model.eval()
    other.eval()
    assert torch.equal(model(images()), other(images()))
    before = copy.deepcopy(quantizer.state_dict()["wrappers"])
    other.train()
    optimizer = torch.optim.SGD(other.parameters(), lr=0.5)
    train_step(other, optimizer, 50 * images())
    other.eval()
    other(images())
    after = quantizer.state_dict()["wrappers"]
    for name, state in before.items():
        assert state["attributes"] == after[name]["attributes"]
        for key, value in state["buffers"].items():
            assert value is None or torch.equal(value, after[name]["buffers"][key]), (name, key)


def test_a_copy_of_one_layer_stays_quantized(trained):
    model, _ = trained
    assert torch.equal(copy.deepcopy(model.conv2).weight, model.conv2.weight)


def test_the_whole_model_can_be_pickled(trained):
    model, _ = trained
    other = pickle.loads(pickle.dumps(model))
    model.eval()
    other.eval()
    assert torch.equal(model(images()), other(images()))
    assert list(model.state_dict()) == list(other.state_dict())
    assert isinstance(other.conv1, nn.Conv2d)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_torch_compile_takes_the_model_as_one_graph(small, mode):
    model, _ = small
    getattr(model, mode)()
    batch = torch.rand(3, 5)
    expected = copy.deepcopy(model)(batch)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    result = compiled(batch)
    torch.testing.assert_close(result, expected)
    result.sum().backward()
    assert model[0]._parameters["weight"].grad is not None


def test_compiled_training_follows_ranges():
    model = nn.Sequential(nn.Identity())
    quantizer = attach("qat", model, "output", op_types=["Identity"])
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    compiled(torch.tensor([-1.0, 3.0]))
    compiled(torch.tensor([-2.0, 5.0]))
    (wrapper,) = quantizer.get_modules_wrapper()
    assert wrapper.output_range.tolist() == pytest.approx([-1.01, 3.02])


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
@pytest.mark.parametrize("strict", [False, True])
def test_torch_export_takes_the_model(small, strict, algorithm):
    if strict and algorithm.startswith("lsq"):
        pytest.skip("strict export knows the parameters of the model only, not learned scales")
    model, quantizer = small
    model.eval()
    batch = torch.rand(3, 5)
    model(batch)
    before = copy.deepcopy(quantizer.state_dict()["wrappers"])
    program = torch.export.export(model, (batch,), strict=strict)
    # Where a graph would change what it does not own, this fails.
    program.run_decompositions({})
    torch.testing.assert_close(program.module()(batch), model(batch))
    for name, state in quantizer.state_dict()["wrappers"].items():
        for key, value in state["buffers"].items():
            assert value is None or torch.equal(value, before[name]["buffers"][key]), (name, key)


def test_functional_call_quantizes_the_parameters_it_is_given(trained):
    model, _ = trained
    model.eval()
    other = {name: 3 * p.detach() for name, p in model.named_parameters()}
    result = torch.func.functional_call(model, other, (images(),))
    changed = copy.deepcopy(model)
    changed.load_state_dict({**model.state_dict(), **other})
    assert torch.equal(result, changed(images()))


def test_data_parallel_runs_it(trained):
    model, _ = trained
    model.eval()
    assert torch.equal(nn.DataParallel(model)(images()), model(images()))


def test_a_replica_of_data_parallel_quantizes_its_own_copy_of_the_weight(trained):
    model, _ = trained
    layer = model.conv2
    replica = layer._replicate_for_data_parallel()
    with pytest.raises(AttributeError, match="weight"):
        _ = replica.weight
    for name, parameter in layer._parameters.items():
        setattr(replica, name, parameter.detach().clone())
    batch = torch.randn(1, 6, 5, 5)
    layer.eval()
    replica.training = False
    assert torch.equal(replica(batch), layer(batch))
    assert levels(replica.weight) <= 16


def test_a_layer_may_be_called_with_keywords():
    model = mlp(4, 3)
    attach("dorefa", model, "input", op_types=["Linear"])
    batch = torch.randn(2, 4)
    assert torch.equal(model[0](input=batch), model[0](batch))
    assert not torch.equal(model[0](input=batch), nn.functional.linear(batch, *model.parameters()))


# -- attention ---------------------------------------------------------------------------------


def test_attention_uses_the_quantized_weight_of_its_output_projection(algorithm):
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    plain = copy.deepcopy(attention)
    attach(algorithm, attention, "weight", op_types=["Linear"])
    batch = torch.randn(2, 3, 8)
    with torch.no_grad():
        plain.out_proj.weight.copy_(attention.out_proj.weight)
    assert levels(attention.out_proj.weight) <= 16
    for mode in (True, False):
        attention.train(mode)
        plain.train(mode)
        torch.testing.assert_close(attention(batch, batch, batch)[0], plain(batch, batch, batch)[0])


@pytest.mark.parametrize("kinds", [("weight",), ("weight", "output")])
def test_the_fast_path_of_a_transformer_layer_gives_what_the_slow_path_gives(kinds):
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    entries = [
        {"quant_types": list(kinds), "quant_bits": 4, "op_names": ["linear1", "linear2"]},
        {"quant_types": ["weight"], "quant_bits": 4, "op_names": ["self_attn.out_proj"]},
    ]
    QAT_Quantizer(layer, entries).compress()
    batch = torch.randn(2, 3, 8)
    layer(batch)
    layer.eval()
    slow = layer(batch)
    with torch.no_grad():
        fast = layer(batch)
    torch.testing.assert_close(fast, slow)


def test_what_attention_never_calls_cannot_have_its_output_quantized():
    with pytest.raises(ConfigError) as caught:
        attach("qat", nn.MultiheadAttention(8, 2), "weight", "output", op_types=["Linear"])
    assert caught.value.problems[0].message == (
        'nn.MultiheadAttention reads the weight of "out_proj" and never calls it: its input and '
        "output cannot be quantized"
    )


def test_the_remedy_for_attention_layers_works_for_all_of_them_at_once():
    model = nn.Sequential(*(nn.TransformerEncoderLayer(8, 2, 16) for _ in range(2)))
    entry = {"op_types": ["Linear"], "quant_types": ["weight", "input"], "quant_bits": 8}
    with pytest.raises(ConfigError) as caught:
        QAT_Quantizer(model, [entry])
    assert '"op_types": ["NonDynamicallyQuantizableLinear"]' in str(caught.value)
    own = {"op_types": ["NonDynamicallyQuantizableLinear"], "quant_types": ["weight"]}
    quantizer = QAT_Quantizer(model, [entry, {**own, "quant_bits": 8}])
    kinds = {wrapper.name: wrapper.config["quant_types"] for wrapper in quantizer.wrappers}
    assert kinds["0.self_attn.out_proj"] == kinds["1.self_attn.out_proj"] == ["weight"]
    assert kinds["0.linear1"] == ["weight", "input"]


# -- precision ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_model_of_another_precision_keeps_it(algorithm, dtype):
    torch.manual_seed(0)
    model = mlp(8, 10, 4).to(dtype)
    quantizer = attach(algorithm, model)
    batch = torch.rand(5, 8, dtype=dtype)
    output = model(batch)
    assert model[0].weight.dtype == output.dtype == dtype
    output.sum().backward()
    for parameter in model.parameters():
        assert parameter.grad.dtype == dtype
        assert parameter.grad.isfinite().all()
    for wrapper in quantizer.get_modules_wrapper():
        assert all(b is None or b.dtype == torch.float32 for b in wrapper.buffers())


def test_half_precision_weights_are_those_of_float32_rounded(algorithm):
    # The grid is computed in float32 from the same values.
    model = mlp(8, 10)
    half = copy.deepcopy(model).bfloat16()
    with torch.no_grad():
        model[0].weight.copy_(half[0].weight)
    attach(algorithm, model, "weight")
    attach(algorithm, half, "weight")
    assert torch.equal(half[0].weight, model[0].weight.bfloat16())


def test_sixteen_bits_on_a_bfloat16_layer_keep_its_values():
    # A zero point of 16 bits has no place in bfloat16.
    model = nn.Sequential(nn.Linear(30, 30)).bfloat16()
    entry = {"quant_types": ["weight", "output"], "quant_bits": 16, "op_types": ["Linear"]}
    plain = model[0].weight.detach().clone()
    QAT_Quantizer(model, [entry]).compress()
    torch.testing.assert_close(model[0].weight, plain, rtol=2**-8, atol=1e-5)


def test_autocast_computes_in_half_precision_and_trains(algorithm):
    model = mlp(8, 10, 4)
    attach(algorithm, model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(torch.rand(5, 8))
    assert output.dtype == torch.bfloat16
    output.float().sum().backward()
    for parameter in model.parameters():
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.isfinite().all()


def test_a_model_cast_after_compress_goes_on(algorithm):
    model = mlp(8, 10, 4)
    attach(algorithm, model)
    model(torch.rand(5, 8))
    model.bfloat16()
    assert model(torch.rand(5, 8).bfloat16()).dtype == torch.bfloat16
