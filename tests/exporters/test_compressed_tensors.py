"""compressed_tensors: what transformers loads has equal logits."""

import json

import pytest
import torch
from torch import nn

import engine
from engine.export import Source

pytest.importorskip("transformers", reason="needs engine[transformers]")

from language_models import attached, quantized

from engine.testing.networks import language_model


@pytest.fixture
def load(tmp_path):
    """Export and load by the package compressed-tensors, which is somebody else's code."""
    pytest.importorskip("compressed_tensors", reason="needs engine[compressed-tensors]")
    from transformers import AutoModelForCausalLM

    def call(quantizer, **more):
        written = quantizer.export("compressed_tensors", tmp_path / "folder", **more)
        return AutoModelForCausalLM.from_pretrained(written.path).eval()

    return call


@pytest.mark.parametrize(
    ("bits", "scheme", "group"),
    [
        (4, "per_group_symmetric", 32),
        (8, "per_channel_symmetric", 0),
        (8, "per_group_symmetric", 16),
    ],
)
def test_the_loaded_model_has_equal_logits(load, bits, scheme, group):
    quantizer, tokens = quantized(bits, scheme, group, tied=False)
    loaded = load(quantizer)
    expected = quantizer.bound_model.eval()(**tokens).logits
    assert torch.equal(loaded(**tokens).logits, expected)


def test_a_tied_head_stays_one_with_the_embedding(load, tmp_path):
    from safetensors import safe_open

    quantizer, tokens = quantized()
    loaded = load(quantizer)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert torch.equal(loaded(**tokens).logits, quantizer.bound_model.eval()(**tokens).logits)
    with safe_open(tmp_path / "folder" / "model.safetensors", "pt") as stream:
        names = set(stream.keys())
    assert "lm_head.weight" not in names
    assert "model.embed_tokens.weight" in names


def test_layers_of_two_widths_are_two_groups_of_the_config(load, tmp_path):
    model, tokens = language_model()
    wide = {"op_names": ["re:.*down_proj"], "quant_types": ["weight"], "quant_bits": 8}
    wide |= {"quant_scheme": "per_channel_symmetric"}
    quantizer = attached(model, 4, types=("Linear",), more=[wide])
    loaded = load(quantizer)
    assert torch.equal(loaded(**tokens).logits, model.eval()(**tokens).logits)
    config = json.loads((tmp_path / "folder" / "config.json").read_text())["quantization_config"]
    groups = config["config_groups"].values()
    assert sorted(len(group["targets"]) for group in groups) == [1, 6]
    assert {group["weights"]["num_bits"] for group in groups} == {4, 8}


def test_bfloat16_stays_and_groups_are_exact_in_it(load):
    """Weights are compared: ``bfloat16()`` rounds rotary frequencies, ``from_pretrained`` none."""
    model, tokens = language_model()
    quantizer = attached(model.bfloat16(), types=("Linear",))
    loaded = load(quantizer)
    loaded(**tokens)  # which unpacks the weights
    assert loaded.dtype == torch.bfloat16
    for name, layer in Source(quantizer).quantized.items():
        assert torch.equal(loaded.get_submodule(name).weight, layer.weight()), name


def test_pruned_and_quantized_zeros_stay_zeros(load):
    model, tokens = language_model()
    entries = [
        {"op_types": ["Linear"], "sparsity": 0.5},
        {"op_names": ["lm_head"], "exclude": True},
    ]
    pruner = engine.create_compressor(model, {"compressor": "level", "config_list": entries})
    pruner.compress()
    quantizer = attached(model, types=("Linear",))
    loaded = load(quantizer)
    assert torch.equal(loaded(**tokens).logits, model(**tokens).logits)
    assert (loaded.model.layers[0].mlp.up_proj.weight == 0).float().mean() >= 0.5


def test_packed_words_hold_the_first_column_lowest(tmp_path):
    """The layout of the format, worked out by hand: codes count from -8."""
    from safetensors.torch import load_file

    quantizer, _ = quantized()
    quantizer.export("compressed_tensors", tmp_path / "folder")
    layer = Source(quantizer).layers["model.layers.0.mlp.up_proj"]
    integers, _ = layer.integers()
    packed = load_file(tmp_path / "folder" / "model.safetensors")[f"{layer.name}.weight_packed"]
    word = sum((int(q) + 8) << (4 * place) for place, q in enumerate(integers[3, 8:16]))
    assert int(packed[3, 1]) == (word - 2**32 if word >= 2**31 else word)


def test_a_model_that_is_none_of_transformers_is_refused(tmp_path):
    quantizer = attached(nn.Sequential(nn.Linear(64, 8)), types=("Linear",), head=True)
    with pytest.raises(engine.ExportError) as raised:
        quantizer.export("compressed_tensors", tmp_path / "folder")
    assert str(raised.value) == (
        "compressed_tensors cannot hold this model; nothing was written\n"
        "  the model: is a Sequential; a model of transformers, which has a config, is needed"
    )
    assert not list(tmp_path.iterdir())


def test_groups_that_do_not_divide_the_inputs_are_refused_by_layer(tmp_path):
    quantizer, _ = quantized(group=48)
    with pytest.raises(engine.ExportError, match="has 64 inputs, which groups of 48 do not divide"):
        quantizer.export("compressed_tensors", tmp_path / "folder")


def test_a_tie_that_the_config_does_not_state_is_refused(tmp_path):
    model, _ = language_model(2, tied=False)
    mlp = [layer.mlp for layer in model.model.layers]
    mlp[1].up_proj.weight = mlp[0].up_proj.weight
    quantizer = attached(model, types=("Linear",))
    with pytest.raises(engine.ExportError) as raised:
        quantizer.export("compressed_tensors", tmp_path / "folder")
    assert str(raised.value).splitlines()[1] == (
        '  layer "model.layers.1.mlp.up_proj": shares model.layers.0.mlp.up_proj.weight, and '
        "config.tie_word_embeddings does not say so"
    )


def test_what_another_quantization_left_in_the_config_is_not_written(tmp_path):
    model, _ = language_model()
    model.config.quantization_config = {"quant_method": "gguf"}
    attached(model, types=("Linear",)).export("compressed_tensors", tmp_path / "folder")
    config = json.loads((tmp_path / "folder" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "compressed-tensors"
    assert model.config.quantization_config == {"quant_method": "gguf"}
