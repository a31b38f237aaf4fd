"""onnx_int4 and onnx_dynamic: run by ONNX Runtime, compared with NumPy in float64."""

import pytest
import torch
from torch import nn

import engine
from engine.export import Source, onnx_reader

onnx = pytest.importorskip("onnx", reason="needs engine[onnx]")
pytest.importorskip("onnxscript", reason="needs engine[onnx]")
pytest.importorskip("onnxruntime", reason="runs the files")


def net(inputs=40):
    return nn.Sequential(nn.Linear(inputs, 24), nn.ReLU(), nn.Linear(24, 5, bias=False)).eval()


def quantized(model, bits, scheme, group=16):
    entry = {"op_types": ["Linear"], "quant_types": ["weight"], "quant_bits": bits}
    entry["quant_scheme"] = scheme
    if "group" in scheme:
        entry["quant_group_size"] = group
    quantizer = engine.create_compressor(model, {"compressor": "naive", "config_list": [entry]})
    quantizer.compress()
    return quantizer


def reference(quantizer, x):
    """Return the outputs in float64, of the integers that the grids state."""
    layers = [Source(quantizer).layers[name] for name in ("0", "2")]
    values = [form.values(q).double() for q, form in (layer.integers() for layer in layers)]
    hidden = (x.double() @ values[0].T + quantizer.bound_model[0].bias.double()).clamp(min=0)
    return (hidden @ values[1].T).detach()


def kinds(path):
    return [node.op_type for node in onnx.load(path).graph.node]


@pytest.mark.parametrize(
    ("bits", "scheme"),
    [(4, "per_group_symmetric"), (4, "per_group_affine"), (8, "per_group_affine")],
)
def test_products_in_float_are_those_of_the_integers(tmp_path, bits, scheme):
    """40 and 24 inputs are not whole blocks of 16: the last one is filled up with zeros."""
    quantizer, x = quantized(net(), bits, scheme), torch.randn(3, 40)
    path = quantizer.export("onnx_int4", tmp_path / "m.onnx", dummy_input=x, accuracy_level=1).path
    assert kinds(path).count("MatMulNBits") == 2
    found = torch.as_tensor(onnx_reader(path)(x)[0]).double()
    torch.testing.assert_close(found, reference(quantizer, x), rtol=1e-5, atol=1e-5)


def test_integers_of_the_input_are_the_default_and_stay_near(tmp_path):
    quantizer, x = quantized(net(64), 4, "per_group_symmetric", 32), torch.randn(64, 64)
    path = quantizer.export("onnx_int4", tmp_path / "m.onnx", dummy_input=x).path
    (node, *_) = [n for n in onnx.load(path).graph.node if n.op_type == "MatMulNBits"]
    settings = {each.name: each.i for each in node.attribute}
    assert settings == {"K": 64, "N": 24, "bits": 4, "block_size": 32, "accuracy_level": 4}
    found, expected = torch.as_tensor(onnx_reader(path)(x)[0]).double(), reference(quantizer, x)
    off = (found - expected).abs().max() / expected.abs().max()
    assert 0 < off < 0.02


def test_the_batch_is_free_and_the_model_as_it_was(tmp_path):
    model = net()
    modules = list(model.modules())
    quantizer = quantized(model, 4, "per_group_symmetric")
    path = quantizer.export("onnx_int4", tmp_path / "m.onnx", dummy_input=torch.randn(2, 40)).path
    assert onnx_reader(path)(torch.randn(7, 40))[0].shape == (7, 5)
    assert list(model.modules()) == modules
    assert model(torch.randn(1, 40)).abs().max() > 0


@pytest.mark.parametrize(
    ("bits", "scheme"),
    [(8, "per_channel_symmetric"), (8, "per_tensor_affine"), (5, "per_channel_affine")],
)
def test_dynamic_integers_are_those_of_the_definition(tmp_path, bits, scheme):
    """DynamicQuantizeLinear, MatMulInteger: inputs on 256 integers over their extremes and 0."""
    quantizer, x = quantized(net(), bits, scheme), torch.randn(3, 40)
    path = quantizer.export("onnx_dynamic", tmp_path / "m.onnx", dummy_input=x).path
    assert kinds(path).count("DynamicQuantizeLinear") == kinds(path).count("MatMulInteger") == 2

    def rounded(t):
        low, high = t.min().clamp(max=0), t.max().clamp(min=0)
        step = (high - low) / 255
        zero = (-low / step).round().clamp(0, 255)
        return (((t / step).round() + zero).clamp(0, 255) - zero) * step

    layers = [Source(quantizer).layers[name] for name in ("0", "2")]
    values = [form.values(q) for q, form in (layer.integers() for layer in layers)]
    hidden = (rounded(x) @ values[0].T + quantizer.bound_model[0].bias).clamp(min=0)
    expected = (rounded(hidden) @ values[1].T).detach()
    evaluator = onnx.reference.ReferenceEvaluator(str(path))
    inputs = dict(zip(evaluator.input_names, [x.numpy()], strict=True))
    for found in (onnx_reader(path)(x)[0], evaluator.run(None, inputs)[0]):
        torch.testing.assert_close(torch.as_tensor(found), expected, rtol=1e-4, atol=1e-4)


def test_layers_that_are_not_called_or_not_float32_are_refused(tmp_path):
    model = nn.MultiheadAttention(32, 2)
    quantizer = engine.create_compressor(
        model,
        {
            "compressor": "naive",
            "config_list": [
                {
                    "op_types": ["NonDynamicallyQuantizableLinear"],
                    "quant_types": ["weight"],
                    "quant_bits": 4,
                    "quant_scheme": "per_group_symmetric",
                }
            ],
        },
    )
    quantizer.compress()
    with pytest.raises(engine.ExportError, match=r'"out_proj": is part of nn\.Multihead'):
        quantizer.export("onnx_int4", tmp_path / "m.onnx", dummy_input=torch.randn(2, 32))
    quantizer = quantized(net().bfloat16(), 4, "per_group_symmetric")
    with pytest.raises(engine.ExportError, match=r'"0", "2": is torch.bfloat16; call model.float'):
        quantizer.export("onnx_int4", tmp_path / "m.onnx", dummy_input=torch.randn(2, 40))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("to", ["onnx_int4", "onnx_dynamic"])
def test_a_language_model_is_compared_for_any_number_of_tokens(tmp_path, to):
    pytest.importorskip("transformers", reason="needs engine[transformers]")
    from language_models import quantized as of_language

    schemes = {
        "onnx_int4": (4, "per_group_symmetric"),
        "onnx_dynamic": (8, "per_channel_symmetric"),
    }
    quantizer, tokens = of_language(*schemes[to])
    path = quantizer.export(to, tmp_path / "m.onnx", dummy_input=tokens).path
    more = {"input_ids": torch.randint(0, 96, (3, 11))}
    expected = quantizer.bound_model.eval()(**more).logits
    found = torch.as_tensor(onnx_reader(path)(**more)[0])
    assert (found - expected).abs().max() < 0.05 * expected.abs().max()
