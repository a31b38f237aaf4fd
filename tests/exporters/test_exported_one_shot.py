"""What one-shot quantizers made, in the files that language models are deployed in."""

import pytest
import torch
from torch import nn

import engine

pytest.importorskip("transformers", reason="needs engine[transformers]")

from engine.testing.networks import language_model


def made(name, scheme, **more):
    """Return the quantizer of a random language model, and tokens for it."""
    model, tokens = language_model(1, **more)
    entry = {"quant_types": ["weight"], "quant_bits": 4, "quant_scheme": scheme}
    entries = [
        {**entry, "quant_group_size": 32, "op_types": ["Linear"]},
        {"exclude": True, "op_names": ["lm_head"]},
    ]
    config = {"compressor": name, "config_list": entries}
    quantizer = engine.create_compressor(model, config, batches=[tokens] * 4)
    quantizer.compress()
    return quantizer, tokens


def test_gptq_is_loaded_by_transformers_with_equal_logits(tmp_path):
    pytest.importorskip("compressed_tensors", reason="needs engine[compressed-tensors]")
    from transformers import AutoModelForCausalLM

    quantizer, tokens = made("gptq", "per_group_symmetric", tied=False)
    written = quantizer.export("compressed_tensors", tmp_path / "folder")
    loaded = AutoModelForCausalLM.from_pretrained(written.path).eval()
    expected = quantizer.bound_model.eval()(**tokens).logits
    assert torch.equal(loaded(**tokens).logits, expected)


@pytest.mark.parametrize(
    ("name", "scheme"), [("gptq", "per_group_symmetric"), ("awq", "per_group_affine")]
)
def test_onnxruntime_computes_the_same(tmp_path, name, scheme):
    onnxruntime = pytest.importorskip("onnxruntime")
    quantizer, tokens = made(name, scheme)
    written = quantizer.export(
        "onnx_int4", tmp_path / "model.onnx", dummy_input=tokens, accuracy_level=0
    )
    session = onnxruntime.InferenceSession(written.path, providers=["CPUExecutionProvider"])
    inputs = {each.name: tokens[each.name].numpy() for each in session.get_inputs()}
    logits = torch.from_numpy(session.run(None, inputs)[0])
    expected = quantizer.bound_model.eval()(**tokens).logits.detach()
    assert torch.allclose(logits, expected, atol=1e-4 * float(expected.abs().max()))


def test_a_plain_linear_layer_through_the_packed_file(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    entry = {"quant_types": ["weight"], "quant_bits": 4, "op_types": ["Linear"]}
    x = torch.randn(64, 32)
    config = {"compressor": "gptq", "config_list": [entry]}
    quantizer = engine.create_compressor(model, config, batches=[x])
    quantizer.compress()
    written = quantizer.export("packed", tmp_path / "model.safetensors")
    fresh = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4))
    loaded = engine.load_quantized(fresh, written.path)
    assert torch.allclose(loaded(x), model(x), atol=1e-6)
