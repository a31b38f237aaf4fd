"""Attention of Hugging Face models loses whole heads, and under grouped queries whole groups."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import engine

transformers = pytest.importorskip("transformers", reason="needs engine[transformers]")

from engine.speedup import SpeedupError, fit_config  # noqa: E402

SMALL = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
GROUPED = {**SMALL, "intermediate_size": 48, "num_key_value_heads": 2}
QKV = ["re:.*self_attn.(q|k|v)_proj"]


def of(name: str, **sizes: Any) -> Any:
    config = getattr(transformers, f"{name}Config")(**sizes)
    torch.manual_seed(0)
    head = "ForCausalLM" if "vocab_size" in sizes and name not in ("Bert", "GPT2") else "Model"
    model = getattr(transformers, name + ("LMHeadModel" if name == "GPT2" else head))(config)
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0, 0.3)
    return model.double().eval()


def tokens(count: int = 2) -> dict[str, Any]:
    return {
        "input_ids": torch.randint(0, 96, (count, 7), generator=torch.Generator().manual_seed(1))
    }


def pruned(model: Any, names: list[str], example: Any, sparsity: float = 0.5) -> tuple[Any, Any]:
    kind = "Conv1D" if "c_attn" in names[0] else "Linear"
    entry = {"op_names": names, "op_types": [kind], "sparsity": sparsity}
    config = {"compressor": "l1_filter", "dependency_aware": True, "config_list": [entry]}
    pruner = engine.create_compressor(model, config, dummy_input=example)
    pruner.compress()
    return pruner, model(**example)[0]


@torch.no_grad()
def equal(ours: Any, theirs: Any) -> bool:
    return float((ours - theirs).abs().max()) <= 1e-12 * float(theirs.abs().max())


LOADED = [
    ("Llama", GROUPED, "eager", QKV, (2, 1, 8)),
    ("Llama", GROUPED, "sdpa", ["re:.*self_attn.(q|k|v|o)_proj"], (2, 1, 8)),
    ("Llama", {**GROUPED, "hidden_size": 64, "num_attention_heads": 8}, "eager", QKV, (4, 1, 8)),
    ("Llama", {**GROUPED, "head_dim": 16}, "sdpa", QKV, (2, 1, 16)),
    ("Llama", {**GROUPED, "num_key_value_heads": 4}, "eager", QKV, (2, 2, 8)),
    ("Mistral", GROUPED, "sdpa", QKV, (2, 1, 8)),
    ("Qwen2", GROUPED, "eager", QKV, (2, 1, 8)),
    ("Qwen3", {**GROUPED, "head_dim": 8}, "sdpa", QKV, (2, 1, 8)),
]


@pytest.mark.parametrize(("name", "sizes", "attention", "names", "left"), LOADED)
def test_whole_groups_of_heads_go_and_what_is_left_is_loaded(
    name: str, sizes: dict[str, Any], attention: str, names: list[str], left: Any, tmp_path: Any
) -> None:
    model = of(name, **sizes)
    model.set_attn_implementation(attention)
    before = sum(p.numel() for p in model.parameters())
    pruner, expected = pruned(model, names, tokens())
    small = pruner.apply_speedup()
    assert small.config.use_cache  # as it was
    assert equal(small(**tokens())[0], expected)
    assert sum(p.numel() for p in small.parameters()) < before
    config = small.config
    found = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    assert found == left
    small.save_pretrained(tmp_path)
    how = {"dtype": torch.float64, "attn_implementation": attention}
    loaded = type(small).from_pretrained(tmp_path, **how).eval()
    assert equal(loaded(**tokens())[0], expected)
    # And it goes on writing, with keys and values as large as the heads.
    written = [m.generate(**tokens(), max_new_tokens=4, do_sample=False) for m in (small, loaded)]
    assert torch.equal(*written)


def test_which_groups_go_is_told_by_the_sum_of_their_weights() -> None:
    model = of("Llama", **GROUPED)
    layer = model.model.layers[0].self_attn
    with torch.no_grad():
        for proj, rows in ((layer.q_proj, 16), (layer.k_proj, 8), (layer.v_proj, 8)):
            proj.weight[:rows] *= 0.1  # the first group: heads 0 and 1, and their key and value
    kept = [p.weight[-rows:].clone() for p, rows in ((layer.q_proj, 16), (layer.v_proj, 8))]
    pruner, _ = pruned(model, QKV, tokens())
    pruner.apply_speedup()
    assert torch.equal(layer.q_proj.weight, kept[0])
    assert torch.equal(layer.v_proj.weight, kept[1])


UNSAID = [
    ("GPT2", {"n_embd": 32, "n_head": 4, "n_layer": 2, "vocab_size": 96}, ["re:.*attn.c_attn"]),
    ("Bert", {**SMALL, "intermediate_size": 48}, ["re:.*self.(query|key|value)"]),
]


@pytest.mark.parametrize(("name", "sizes", "names"), UNSAID)
def test_heads_go_where_the_config_cannot_say_so_and_that_is_said(
    name: str, sizes: dict[str, Any], names: list[str], tmp_path: Any
) -> None:
    example = tokens()
    model = of(name, **sizes)
    before = model.config.to_dict()
    pruner, expected = pruned(model, names, example)
    with pytest.warns(UserWarning, match="from_pretrained will not load this model: no settings"):
        small = pruner.apply_speedup()
    assert equal(small(**example)[0], expected)
    assert any(layer.after < layer.before for layer in pruner.speedup_report.layers)
    with pytest.raises(SpeedupError, match="the hidden size divided by the number of heads"):
        fit_config(small)
    assert small.config.to_dict() == before
    engine.save_compressed(small, tmp_path / "small.pt")
    fresh = engine.load_compressed(of(name, **sizes), tmp_path / "small.pt").eval()
    assert equal(fresh(**example)[0], expected)


def test_a_head_size_that_a_config_leaves_out_is_said(tmp_path: Any) -> None:
    """ViT reads it by getattr, with the hidden size divided by the heads in its place."""
    sizes = {**SMALL, "image_size": 16, "patch_size": 4, "intermediate_size": 48}
    del sizes["vocab_size"]
    model, image = of("ViT", **sizes), {"pixel_values": torch.randn(2, 3, 16, 16).double()}
    pruner, expected = pruned(model, ["re:.*(q_proj|k_proj|v_proj|query|key|value)"], image)
    small = pruner.apply_speedup()
    assert equal(small(**image)[0], expected)
    assert fit_config(small) == {}
    small.save_pretrained(tmp_path)
    loaded = type(small).from_pretrained(tmp_path, dtype=torch.float64).eval()
    assert equal(loaded(**image)[0], expected)


def test_layers_with_different_numbers_of_heads_are_named() -> None:
    model = of("Llama", **GROUPED)
    pruner, expected = pruned(model, ["re:.*layers.0.self_attn.(q|k|v)_proj"], tokens())
    with pytest.warns(UserWarning, match="from_pretrained will not load") as warned:
        small = pruner.apply_speedup()
    assert str(warned[0].message).endswith(
        'LlamaConfig has one size for all layers, and "model.layers.0.self_attn.q_proj.weight" '
        '(16, 32) differs from "model.layers.1.self_attn.q_proj.weight" (32, 32)\n'
        "  remove as much from each layer of one kind, whole heads and whole groups of heads; or "
        "save the model with engine.save_compressed"
    )
    assert equal(small(**tokens())[0], expected)


def test_settings_are_found_without_an_example_too() -> None:
    """Half of the heads and heads of half the size give the same shapes, not the same outputs."""
    model = of("Llama", **GROUPED)
    pruner, _ = pruned(model, QKV, tokens())
    small = pruner.apply_speedup()
    small.config.num_attention_heads, small.config.num_key_value_heads = 4, 2
    assert fit_config(small) == {"num_attention_heads": 2, "num_key_value_heads": 1}


class Grouped(nn.Module):
    """Grouped queries in the manner of repeat_kv, with more examples in a batch than heads."""

    def __init__(self, heads: int = 8, groups: int = 2, width: int = 6) -> None:
        super().__init__()
        self.heads, self.groups, self.width = heads, groups, width
        self.q = nn.Linear(20, heads * width)
        self.k, self.v = nn.Linear(20, groups * width), nn.Linear(20, groups * width)
        self.o = nn.Linear(heads * width, 20)
        self.repeats = heads // groups

    def forward(self, x: Any) -> Any:
        b, t, _ = x.shape
        q = self.q(x).view(b, t, -1, self.width).transpose(1, 2)
        k = self.k(x).view(b, t, -1, self.width).transpose(1, 2)
        v = self.v(x).view(b, t, -1, self.width).transpose(1, 2)
        k, v = (
            y[:, :, None].expand(b, y.shape[1], self.repeats, t, self.width)
            .reshape(b, y.shape[1] * self.repeats, t, self.width)
            for y in (k, v)
        )  # fmt: skip
        y = F.softmax(q @ k.mT / self.width**0.5, -1) @ v
        return self.o(y.transpose(1, 2).reshape(b, t, -1))


@pytest.mark.parametrize("batch", [1, 3, 11])
@pytest.mark.parametrize(("heads", "groups"), [(8, 2), (4, 4), (6, 3), (12, 2)])
def test_own_grouped_queries_lose_groups_whatever_the_batch(
    batch: int, heads: int, groups: int
) -> None:
    torch.manual_seed(0)
    model, x = Grouped(heads, groups).double().eval(), torch.randn(batch, 5, 20).double()
    entries = [{"op_names": ["q", "k", "v"], "sparsity": 0.5}]
    from engine.algorithms import L1FilterPruner

    pruner = L1FilterPruner(model, entries, dependency_aware=True, dummy_input=x)
    pruner.compress()
    other = torch.randn(3, 4, 20).double()
    expected = model(other)
    pruner.apply_speedup()
    left = groups - groups // 2
    assert model.k.weight.shape == (left * 6, 20)
    assert model.q.weight.shape == (left * (heads // groups) * 6, 20)
    assert equal(model(other), expected)
