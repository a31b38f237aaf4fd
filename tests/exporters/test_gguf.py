"""gguf: read by the package gguf, and by transformers through it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import engine
from engine.export import Source

pytest.importorskip("transformers", reason="needs engine[transformers]")
gguf = pytest.importorskip("gguf", reason="needs engine[transformers]")

from language_models import attached, quantized  # noqa: E402

from engine.testing.networks import language_model  # noqa: E402
from plugins_builtin.gguf.blocks import TYPES, blocks  # noqa: E402


def tensors(path):
    """Return the tensors of a file, as the package gguf dequantizes them, and their types."""
    reader = gguf.GGUFReader(path)
    return {
        t.name: (gguf.dequantize(t.data, t.tensor_type), t.tensor_type.name) for t in reader.tensors
    }


def loaded(path):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=str(path), dtype=torch.float32
    ).eval()


@settings(deadline=None, max_examples=30)
@given(st.sampled_from([4, 8]), st.integers(1, 3), st.integers(1, 3), st.integers(0, 2**31 - 1))
def test_blocks_are_those_of_the_package(bits, rows, count, seed):
    generator = torch.Generator().manual_seed(seed)
    limit = 1 << (bits - 1)
    q = torch.randint(-limit + 1, limit, (rows, 32 * count), generator=generator)
    scale = (torch.rand(rows, count, generator=generator) + 0.1).half()
    packed = blocks(q.to(torch.int32), scale, bits)
    kind = gguf.GGMLQuantizationType[TYPES[bits][0]]
    expected = q.numpy() * scale.float().numpy().repeat(32, 1)
    assert np.array_equal(gguf.dequantize(packed.numpy(), kind), expected.astype(np.float32))


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_transformers_loads_it_with_equal_logits(tmp_path, kind):
    more = {"head_dim": 128} if kind == "qwen3" else {}  # what its loader takes for granted
    quantizer, tokens = quantized(kind=kind, **more)
    quantizer.export("gguf", tmp_path / "m.gguf")
    model = loaded(tmp_path / "m.gguf")
    assert type(model) is type(quantizer.bound_model)
    expected = quantizer.bound_model.eval()(**tokens).logits
    assert torch.equal(model(**tokens).logits, expected)


def test_types_names_and_values_are_those_of_the_package(tmp_path):
    quantizer, _ = quantized(8, "per_group_symmetric", 32, tied=False)
    quantizer.export("gguf", tmp_path / "m.gguf", rest="float16")
    found = tensors(tmp_path / "m.gguf")
    kinds = {name: kind for name, (_, kind) in found.items()}
    assert kinds["blk.0.ffn_down.weight"] == "Q8_0"
    assert kinds["blk.0.attn_norm.weight"] == "F32"
    assert kinds["token_embd.weight"] == kinds["output.weight"] == "F16"
    weight = Source(quantizer).layers["model.layers.0.mlp.down_proj"].weight()
    assert np.array_equal(found["blk.0.ffn_down.weight"][0], weight.numpy())


def test_a_tied_embedding_is_quantized_with_its_head_and_written_once(tmp_path):
    quantizer, tokens = quantized(8, types=("Linear", "Embedding"), head=True)
    quantizer.export("gguf", tmp_path / "m.gguf")
    found = tensors(tmp_path / "m.gguf")
    assert found["token_embd.weight"][1] == "Q8_0"
    assert "output.weight" not in found
    expected = quantizer.bound_model.eval()(**tokens).logits
    assert torch.equal(loaded(tmp_path / "m.gguf")(**tokens).logits, expected)


def test_scales_of_channels_are_rounded_to_half_precision_and_that_explains_the_rest(tmp_path):
    quantizer, tokens = quantized(8, "per_channel_symmetric")
    quantizer.export("gguf", tmp_path / "m.gguf", dummy_input=tokens)  # which compares
    expected = quantizer.bound_model.eval()(**tokens).logits
    off = (loaded(tmp_path / "m.gguf")(**tokens).logits - expected).abs().max()
    assert 0 < off < 1e-3 * expected.abs().max()


def test_a_pruned_model_is_written_in_its_own_dtype(tmp_path):
    model, tokens = language_model()
    entries = [
        {"op_types": ["Linear"], "sparsity": 0.5},
        {"op_names": ["lm_head"], "exclude": True},
    ]
    pruner = engine.create_compressor(model, {"compressor": "level", "config_list": entries})
    pruner.compress()
    pruner.export("gguf", tmp_path / "m.gguf", dummy_input=tokens)
    assert torch.equal(loaded(tmp_path / "m.gguf")(**tokens).logits, model.eval()(**tokens).logits)
    assert (tensors(tmp_path / "m.gguf")["blk.0.ffn_up.weight"][0] == 0).mean() == 0.5


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"kind": "gemma"}, "the model: is a gemma; it writes llama, qwen2, qwen3"),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
            'the model: has rotary embeddings of type "linear"; it writes "default"',
        ),
        ({"hidden_act": "gelu"}, "the model: has the activation gelu; its readers compute silu"),
        (
            {"mlp_bias": True},
            'layers "model.layers.0.mlp.gate_proj", "model.layers.0.mlp.up_proj", '
            '"model.layers.0.mlp.down_proj": has a bias, which llama has not',
        ),
    ],
)
def test_what_its_readers_do_not_know_is_refused_by_name(tmp_path, settings, reason):
    quantizer, _ = quantized(**settings)
    with pytest.raises(engine.ExportError) as raised:
        quantizer.export("gguf", tmp_path / "m.gguf")
    assert str(raised.value).splitlines()[1] == f"  {reason}"
    assert not list(tmp_path.iterdir())


def test_groups_that_are_no_blocks_are_refused(tmp_path):
    quantizer, _ = quantized(group=16)
    with pytest.raises(
        engine.ExportError, match="groups are of 16 weights; multiples of 32 can be"
    ):
        quantizer.export("gguf", tmp_path / "m.gguf")


def test_a_scale_that_half_precision_does_not_hold_is_refused(tmp_path):
    model, _ = language_model()
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.mul_(1e-7)
    quantizer = attached(model, types=("Linear",))
    with pytest.raises(engine.ExportError, match='up_proj": has scales that half'):
        quantizer.export("gguf", tmp_path / "m.gguf")
