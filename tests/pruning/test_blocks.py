"""Whole blocks: found by running, measured by the formula, passed by, removed, saved."""

import copy
import io

import pytest
import torch
from processes import group_of_two, reports_of_two
from torch import distributed, nn
from torch.nn import functional as F

import engine
from engine import ConfigError, EngineError, PluginError, cli
from engine.pruning import BlockPruner, repeated_blocks

ENTRY = {"op_types": ["default"], "sparsity": 0.5}


class Plain(nn.Module):
    """A norm and a linear layer beside a skip; puts out a tensor, or a tuple around one."""

    def __init__(self, width=8, scale=1.0, form=None, image=False):
        super().__init__()
        self.norm = nn.BatchNorm2d(width) if image else nn.LayerNorm(width)
        self.layer = nn.Conv2d(width, width, 3, padding=1) if image else nn.Linear(width, width)
        self.scale, self.form = scale, form

    def forward(self, x, mask=None):
        x = x + self.scale * self.layer(self.norm(x))
        return x if self.form is None else self.form(x)


class Model(nn.Module):
    def __init__(self, blocks):
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.layers = nn.ModuleList(blocks)
        self.head = nn.Linear(8, 20)

    def forward(self, input_ids, attention_mask=None):
        x = self.embed(input_ids)
        for layer in self.layers:
            x = layer(x, mask=attention_mask)
            x = x[0] if isinstance(x, (tuple, list)) else x
        return self.head(x)


SCALES = (1.0, 0.1, 0.0, 2.0, 0.3)


def model(seed=0, **kwargs):
    torch.manual_seed(seed)
    return Model([Plain(scale=scale, **kwargs) for scale in SCALES]).eval()


def tokens(count=3, rows=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 20, (rows, 7), generator=generator) for _ in range(count)]


def pruned(net, batches=None, optimizer=None, **entry):
    config = {"compressor": "depth", "config_list": [{**ENTRY, **entry}]}
    pruner = engine.create_compressor(net, config, optimizer, batches=batches or tokens())
    pruner.compress()
    return pruner


def same(state, other):
    return state.keys() == other.keys() and all(torch.equal(v, other[k]) for k, v in state.items())


@torch.no_grad()
def test_the_influence_is_the_formula():
    """Against hidden states by hand, in float64."""
    net = model()
    plain = copy.deepcopy(net).double()
    pruner = pruned(net)
    states = [plain.embed(torch.cat(tokens()))]
    for layer in plain.layers:
        states.append(layer(states[-1]))
    flat = [state.flatten(0, 1) for state in states]
    for wrapper, x, y in zip(pruner.wrappers, flat, flat[1:], strict=False):
        cosine = (x * y).sum(-1) / (x.norm(dim=-1) * y.norm(dim=-1))
        assert wrapper.influence == pytest.approx(float((1 - cosine).mean()), abs=1e-6)
    assert pruner.removed_blocks() == ["layers.1", "layers.2"]


@torch.no_grad()
def test_padding_is_not_counted():
    net, (batch,) = model(), tokens(1)
    mask = torch.ones_like(batch)
    mask[:, 5:] = 0
    both = [pruned(net, [{"input_ids": batch, "attention_mask": mask}])]
    both[0].unwrap()
    both.append(pruned(net, [batch[:, :5]]))  # each token by itself in these blocks
    first, second = ([w.influence for w in each.wrappers] for each in both)
    assert first == pytest.approx(second, abs=1e-6)


@pytest.mark.parametrize("form", [None, lambda x: (x,), lambda x: [x], lambda x: (None, x, 3)])
@torch.no_grad()
def test_blocks_are_passed_by_and_taken_out(form):
    if form is not None and form(0) == (None, 0, 3):
        torch.manual_seed(0)
        net = nn.Sequential(*(Plain(form=form) for _ in range(2)))
        found = repeated_blocks(net, lambda: net[0](torch.rand(3, 8)))
        assert not found  # the second does not run
        return
    net, (x,) = model(form=form), tokens(1, seed=5)
    dense = net(x)
    state = copy.deepcopy(net.state_dict())
    by_hand = copy.deepcopy(net)
    del by_hand.layers[1:3]
    pruner = pruned(net)
    assert torch.equal(net(x), by_hand(x))
    assert same(state, net.state_dict())
    pruner.unwrap()
    assert torch.equal(net(x), dense)
    assert all(p.requires_grad for p in net.parameters())
    pruner.compress()
    smaller = pruner.apply_speedup()
    assert smaller is net
    assert len(net.layers) == 3
    assert torch.equal(net(x), by_hand(x))
    assert same(net.state_dict(), by_hand.state_dict())


def test_baked_they_are_taken_out():
    net = model()
    pruned(net).unwrap(bake=True)
    assert [layer.scale for layer in net.layers] == [1.0, 2.0, 0.3]


def test_written_it_loads_into_the_smaller_model(tmp_path):
    net, (x,) = model(), tokens(1, seed=5)
    pruner = pruned(net)
    pruner.export_model(tmp_path / "model.pth")
    assert len(net.layers) == 5
    smaller = Model([Plain(scale=scale) for scale in (1.0, 2.0, 0.3)]).eval()
    smaller.load_state_dict(torch.load(tmp_path / "model.pth", weights_only=True))
    assert torch.equal(smaller(x), net(x))


@pytest.mark.parametrize("taken_out", [False, True])
def test_formats_hold_what_is_left(taken_out, tmp_path):
    """A graph, and a file of weights alone, which is read into the smaller model."""
    net, (x,) = model(), tokens(1, seed=5)
    pruner = pruned(net)
    expected = net(x)
    if taken_out:
        pruner.apply_speedup()
    pruner.export("torch_export", tmp_path / "model.pt2", dummy_input=x)
    graph = torch.export.load(tmp_path / "model.pt2")
    assert torch.allclose(graph.module()(x), expected, atol=1e-6)
    assert len({name.split(".")[1] for name in graph.state_dict if "layers" in name}) == 3
    pruner.export_model(tmp_path / "model.pth")
    pruner.export("packed", tmp_path / "packed.pth", dummy_input=x)
    for name in ("model.pth", "packed.pth"):
        assert len(torch.load(tmp_path / name, weights_only=True)) == 3 * 4 + 3
    assert len(net.layers) == (3 if taken_out else 5)


def test_the_command_exports_it(tmp_path, monkeypatch, capsys):
    (tmp_path / "blocks_of_tests.py").write_text(
        "import torch\nfrom engine.testing.networks import residual_stack\n"
        "def build():\n    torch.manual_seed(0)\n    return residual_stack()[0]\n"
        "def batches():\n    return [torch.ones(2, 8)]\n"
    )
    (tmp_path / "job.yaml").write_text(
        "compressor: depth\nconfig_list: [{op_types: [default], sparsity: 0.5}]\n"
        "batches: blocks_of_tests:batches\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    net = __import__("blocks_of_tests").build()
    pruner = engine.create_compressor(net, "job.yaml")
    pruner.compress()
    torch.save({"model": net.state_dict(), "compressor": pruner.state_dict()}, "point.pt")
    command = ["export", "job.yaml", "--model", "blocks_of_tests:build", "--checkpoint", "point.pt"]
    assert cli.main([*command, "--output", "small.pth"]) == 0, capsys.readouterr().err
    assert len(torch.load("small.pth", weights_only=True)) == 3 * 6 + 4
    assert cli.main([*command, "--output", "small.pth", "--masks", "masks.pth"]) == 2
    assert "of which there are no masks" in capsys.readouterr().err


def test_trained_it_leaves_removed_blocks_alone():
    net, (x,) = model(), tokens(1)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    net(x).square().mean().backward()  # gradients from before
    pruner = pruned(net, optimizer=optimizer)
    before = copy.deepcopy(net.state_dict())
    for _ in range(2):
        net(x).square().mean().backward()
        optimizer.step()
    after = net.state_dict()
    moved = {
        key.rpartition(".layer.")[0] for key in before if not torch.equal(before[key], after[key])
    }
    assert not any(name.startswith(("layers.1", "layers.2")) for name in moved)
    assert "layers.0" in moved
    pruner.apply_speedup()
    parameters = {id(p) for p in net.parameters()}
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == parameters
    assert {id(p) for p in optimizer.state} <= parameters


def test_resumed_it_passes_the_same_blocks_by():
    net, (x,) = model(), tokens(1, seed=5)
    pruner = pruned(net)
    stream = io.BytesIO()
    torch.save([net.state_dict(), pruner.state_dict()], stream)
    stream.seek(0)
    state, own = torch.load(stream, weights_only=True)
    again = model(seed=1)
    resumed = pruned(again, tokens(seed=8), sparsity=0.2)
    resumed.load_model_state_dict(state)
    resumed.load_state_dict(own)
    assert resumed.removed_blocks() == pruner.removed_blocks()
    assert torch.equal(again(x), net(x))


def test_images_with_norms_and_strides():
    """Of a residual network the blocks that keep their size can go, the others cannot."""
    torch.manual_seed(0)

    class Stage(nn.Module):
        def __init__(self, a, b, stride):
            super().__init__()
            self.conv = nn.Conv2d(a, b, 3, stride, 1)
            self.norm = nn.BatchNorm2d(b)
            self.beside = nn.Conv2d(a, b, 1, stride) if (a, stride) != (b, 1) else nn.Identity()

        def forward(self, x):
            return F.relu(self.beside(x) + self.norm(self.conv(x)))

    stages = [
        nn.Sequential(Stage(a, b, stride), Stage(b, b, 1), Stage(b, b, 1))
        for a, b, stride in ((8, 8, 1), (8, 16, 2))
    ]
    net = nn.Sequential(nn.Conv2d(3, 8, 3), *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    images = torch.rand(2, 4, 3, 12, 12)
    net.train()
    pruner = pruned(net, list(images), sparsity=0.4)
    assert [w.name for w in pruner.wrappers] == ["1.0", "1.1", "1.2", "2.1", "2.2"]
    assert net.training
    with torch.no_grad():
        expected = net.eval()(images[0])
        assert torch.equal(pruner.apply_speedup(images[0])(images[0]), expected)
    assert sum(isinstance(m, Stage) for m in net.modules()) == 4


def test_what_stands_side_by_side_is_no_block():
    """Experts, heads and branches get one tensor; layers without modules in them are no blocks."""

    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.experts = nn.ModuleList(Plain() for _ in range(3))

        def forward(self, x):
            return sum(expert(x) for expert in self.experts)

    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), Branches())
    assert not repeated_blocks(net, lambda: net(torch.rand(3, 8)))
    with pytest.raises(ConfigError, match="the model has no blocks that can be left out"):
        pruned(net, [torch.rand(3, 8)])


def test_what_is_named_must_be_a_block():
    with pytest.raises(ConfigError, match=r'"embed" can not be left out\n  blocks are: layers.0,'):
        pruned(model(), op_types=["Embedding", "Plain"], op_names=["embed", "layers.1"])
    pruner = pruned(model(), op_names=["layers.0", "layers.3"])
    assert len(pruner.removed_blocks()) == 1


def test_an_extension_that_changes_masks_is_refused():
    config = {"compressor": "depth", "config_list": [ENTRY], "extensions": ["n_m"]}
    pruner = engine.create_compressor(model(), config, batches=tokens())
    with pytest.raises(PluginError, match="removes whole blocks, and an extension"):
        pruner.compress()


def test_a_score_that_is_none():
    class Wrong(BlockPruner):
        def score_block(self, before, after):
            return after

    with pytest.raises(PluginError, match=r"returned \(28, 8\)\n  it must return one number"):
        Wrong(model(), [ENTRY], batches=tokens()).compress()
    net = model()
    with torch.no_grad():
        net.layers[1].layer.weight.fill_(torch.nan)
    with pytest.raises(EngineError, match=r'the influence of block "layers.1" is nan'):
        pruned(net)


def test_a_model_that_counts_its_blocks_is_as_it_was():
    net = model()
    net.forward = lambda x: net.head(_run(net, x))

    def _run(net, x):
        x = net.embed(x)
        for place in range(5):
            x = net.layers[place](x)
        return x

    pruner = pruned(net)
    state = copy.deepcopy(net.state_dict())
    with pytest.raises(EngineError, match=r"does not run without layers\.1, layers\.2"):
        pruner.apply_speedup()
    assert same(state, net.state_dict())
    assert pruner.removed_blocks() == ["layers.1", "layers.2"]


def in_parallel(rank, meet, results):
    with group_of_two(rank, meet):
        net = model()
        pruner = pruned(net, tokens(4)[rank::2])
        wrapped = nn.parallel.DistributedDataParallel(net)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for batch in tokens(4, seed=3)[rank::2]:
            optimizer.zero_grad()
            wrapped(batch).square().mean().backward()
            optimizer.step()
        file = f"{meet}{rank}.pt"
        torch.save([pruner.removed_blocks(), net.state_dict()], file)
        results.put((rank, file))


@pytest.mark.slow
@pytest.mark.skipif(not distributed.is_gloo_available(), reason="this torch has no gloo")
def test_two_processes_agree_and_train(tmp_path):
    files = reports_of_two(in_parallel, tmp_path / "meet")
    (gone, first), (others, second) = (torch.load(files[rank]) for rank in range(2))
    assert gone == others == pruned(model(), tokens(4)).removed_blocks()
    assert same(first, second)


# -- transformers ------------------------------------------------------------------------------

SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4, "vocab_size": 40}


def hugging_face(name):
    """Return a small model, drawn at random."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    if name == "llama":  # as many heads as blocks
        config = transformers.LlamaConfig(**SMALL, num_hidden_layers=4, num_key_value_heads=2)
        return transformers.LlamaForCausalLM(config).eval()
    if name == "qwen":  # kinds of attention, listed
        kinds = ["full_attention", "sliding_attention"] * 3
        config = transformers.Qwen2Config(
            **SMALL,
            num_hidden_layers=6,
            num_key_value_heads=2,
            layer_types=kinds,
            sliding_window=4,
            use_sliding_window=True,
        )
        return transformers.Qwen2ForCausalLM(config).eval()
    if name == "gpt2":
        config = transformers.GPT2Config(n_embd=16, n_layer=4, n_head=2, vocab_size=40)
        return transformers.GPT2LMHeadModel(config).eval()
    if name == "bert":
        config = transformers.BertConfig(**SMALL, num_hidden_layers=4)
        return transformers.BertForMaskedLM(config).eval()
    if name == "vit":
        config = transformers.ViTConfig(
            **{k: v for k, v in SMALL.items() if k != "vocab_size"},
            num_hidden_layers=4,
            image_size=8,
            patch_size=4,
        )
        return transformers.ViTForImageClassification(config).eval()
    config = transformers.BartConfig(
        d_model=16,
        encoder_layers=3,
        decoder_layers=5,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        vocab_size=40,
    )
    return transformers.BartForConditionalGeneration(config).eval()


@pytest.mark.parametrize("name", ["llama", "qwen", "gpt2", "bert", "vit", "bart"])
@torch.no_grad()
def test_models_of_transformers_are_saved_and_loaded(name, tmp_path):
    net = hugging_face(name)
    if name == "vit":
        batches = [{"pixel_values": torch.rand(2, 3, 8, 8)} for _ in range(2)]
    else:
        batches = [{"input_ids": batch} for batch in tokens()]
    dense = net(**batches[0]).logits
    pruner = pruned(net, batches)
    gone = pruner.removed_blocks()
    expected = net(**batches[0]).logits
    assert not torch.allclose(expected, dense, atol=1e-3)
    before = len(pruner.wrappers)
    pruner.apply_speedup()
    assert torch.equal(net(**batches[0]).logits, expected)
    net.save_pretrained(tmp_path)
    assert "quantization_config" not in net.config.to_dict()
    loaded = type(net).from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(**batches[0]).logits, expected)
    blocks = repeated_blocks(loaded, lambda: loaded(**batches[0]))
    assert len(blocks) == before - len(gone)
    if name in ("llama", "qwen", "gpt2"):
        made = [
            net.generate(**batches[0], max_new_tokens=5, do_sample=False, use_cache=cached)
            for cached in (True, False)
        ]
        assert torch.equal(*made)
        if name == "qwen":
            kept = [n for n in range(6) if f"model.layers.{n}" not in gone]
            kinds = ["full_attention", "sliding_attention"] * 3
            assert list(loaded.config.layer_types) == [kinds[n] for n in kept]
