"""A smaller Hugging Face model is loaded by from_pretrained."""

import pytest
import torch

import engine

transformers = pytest.importorskip("transformers", reason="needs engine[transformers]")

from engine.speedup import SpeedupError, fit_config  # noqa: E402

SMALL = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


def llama():
    config = transformers.LlamaConfig(intermediate_size=48, num_key_value_heads=2, **SMALL)
    return transformers.LlamaForCausalLM(config)


def bert():
    return transformers.BertModel(transformers.BertConfig(intermediate_size=48, **SMALL))


def gpt2():
    sizes = {"n_embd": 32, "n_head": 4, "n_layer": 2, "vocab_size": 96}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes))


def shrunk(model, names, tokens, sparsity=0.5):
    torch.manual_seed(0)
    kind = "Conv1D" if "c_fc" in names[0] else "Linear"
    entry = {"op_names": names, "op_types": [kind], "sparsity": sparsity}
    config = {"compressor": "l1_filter", "dependency_aware": True, "config_list": [entry]}
    pruner = engine.create_compressor(model.eval(), config, dummy_input={"input_ids": tokens})
    pruner.compress()
    expected = model(input_ids=tokens)[0]
    return pruner.apply_speedup(), expected


@pytest.mark.parametrize(
    ("make", "names", "changed"),
    [
        (llama, ["re:.*(gate|up)_proj"], {"intermediate_size": 24}),
        (bert, ["re:.*intermediate.dense"], {"intermediate_size": 24}),
        (gpt2, ["re:.*mlp.c_fc"], {"n_inner": 64}),
    ],
)
def test_it_is_saved_and_loaded_and_computes_the_same(make, names, changed, tmp_path):
    torch.manual_seed(0)
    tokens = torch.randint(0, 96, (2, 7))
    model, expected = shrunk(make(), names, tokens)
    assert {name: getattr(model.config, name) for name in changed} == changed
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    assert torch.allclose(loaded(input_ids=tokens)[0], expected, atol=1e-5)
    assert sum(p.numel() for p in loaded.parameters()) < sum(p.numel() for p in make().parameters())
    assert fit_config(loaded) == {}


def test_layers_of_different_sizes_are_named(tmp_path):
    torch.manual_seed(0)
    tokens = torch.randint(0, 96, (2, 7))
    names = ["model.layers.0.mlp.gate_proj", "model.layers.0.mlp.up_proj"]
    with pytest.warns(UserWarning, match="from_pretrained will not load"):
        model, expected = shrunk(llama(), names, tokens)
    assert torch.allclose(model(input_ids=tokens)[0], expected, atol=1e-5)
    before = model.config.to_dict()
    with pytest.raises(SpeedupError, match=r'layers.0.mlp.gate_proj.weight" \(24, 32\) differs'):
        fit_config(model)
    assert model.config.to_dict() == before


def test_a_model_without_a_config():
    with pytest.raises(SpeedupError, match="Linear has no config"):
        fit_config(torch.nn.Linear(2, 2))
