"""One-shot algorithms in a compressor: formulas, order, undo, schedules, files, refusals."""

import copy
import io

import pytest
import torch
from decoders import decoder, tokens
from torch import nn

import engine
from engine import ConfigError, PluginError, Pruner, Quantizer, QuantType
from engine.calibration import LayerResult
from engine.quantization import dequantize, keep_grid, scheme_of

LINEAR = {"op_types": ["Linear"]}
PRUNERS = {
    "wanda": {"config_list": [{"sparsity": 0.5, **LINEAR}]},
    "sparse_gpt": {"config_list": [{"sparsity": 0.5, **LINEAR}], "damping": [0.01]},
}
GROUPS = {"quant_types": ["weight"], "quant_bits": 4, "quant_group_size": 16, **LINEAR}
QUANTIZERS = {
    name: {"config_list": [{**GROUPS, "quant_scheme": f"per_group_{kind}"}]}
    for name, kind in (("gptq", "symmetric"), ("awq", "affine"))
} | {
    "smooth_quant": {"config_list": [{**LINEAR, "quant_types": ["weight"], "quant_bits": 8}]},
    "ada_round": {"config_list": [{**GROUPS}], "iterations": 20, "damping": [0.1]},
}
EVERY = {**PRUNERS, **QUANTIZERS}


def attached(name, model, **more):
    config = {"compressor": name, **EVERY.get(name, {}), **more}
    compressor = engine.create_compressor(model, config, batches=tokens())
    compressor.compress()
    return compressor


def same(state, other):
    return all(torch.equal(value, other[key]) for key, value in state.items())


@torch.no_grad()
def test_wanda_is_its_formula_layer_by_layer():
    """Against hooks on a copy in float64 that is pruned in the order of running."""
    model = decoder(depth=2)
    plain = copy.deepcopy(model).double()
    attached("wanda", model)
    order = [f"layers.{n}.{x}" for n in range(2) for x in ("q k v", "o", "gate up", "down")]
    for names in [*order, "head"]:
        prefix, _, last = names.rpartition(".")
        layers = [plain.get_submodule(f"{prefix}.{x}" if prefix else x) for x in last.split()]
        seen = []
        hook = layers[0].register_forward_pre_hook(
            lambda module, args, seen=seen: seen.append(args[0])
        )
        for batch in tokens():
            plain(batch)
        hook.remove()
        norm = torch.cat([x.flatten(0, 1) for x in seen]).square().sum(0).sqrt()
        for layer in layers:
            score = layer.weight.abs() * norm
            kept = torch.ones_like(score, dtype=torch.bool)
            kept.scatter_(1, score.argsort(1)[:, : score.shape[1] // 2], False)
            layer.weight.mul_(kept)
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear):
            assert torch.equal(layer.weight != 0, plain.get_submodule(name).weight != 0), name


@pytest.mark.parametrize("name", PRUNERS)
@pytest.mark.parametrize("pattern", ["2:4", "4:8", "1:4", "2:6"])
def test_patterns(name, pattern):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 144), nn.ReLU(), nn.Linear(144, 288), nn.Linear(288, 48))
    config = {"compressor": name, "pattern": pattern, "config_list": [{**LINEAR}]}
    batches = [torch.randn(64, 16) for _ in range(4)]
    pruner = engine.create_compressor(model, config, batches=batches)
    pruner.compress()
    kept, of = map(int, pattern.split(":"))
    for wrapper in pruner.get_modules_wrapper()[1:]:
        pieces = (wrapper.weight != 0).view(len(wrapper.weight), -1, of).sum(-1)
        assert int(pieces.max()) <= kept
        assert float((wrapper.weight == 0).float().mean()) == pytest.approx(1 - kept / of, abs=0.01)


def test_a_pattern_and_another_sparsity_contradict():
    with pytest.raises(ConfigError, match=r"2:4 removes 0.5 .*asks for 0.8"):
        attached("wanda", decoder(), pattern="2:4", config_list=[{"sparsity": 0.8, **LINEAR}])


@pytest.mark.parametrize("name", EVERY)
def test_unwrapped_the_model_is_as_it_was_bit_for_bit(name):
    model = decoder()
    state = copy.deepcopy(model.state_dict())
    compressor = attached(name, model)
    assert name == "smooth_quant" or not same(state, model.state_dict())
    compressor.unwrap()
    assert same(state, model.state_dict())
    compressor.compress()  # once more
    compressor.unwrap()
    assert same(state, model.state_dict())


@pytest.mark.parametrize("name", EVERY)
def test_baked_the_model_computes_the_same_without_the_engine(name):
    model, (batch,) = decoder(), tokens(1, seed=9)
    compressor = attached(name, model)
    expected = model(batch)
    compressor.unwrap(bake=True)
    assert type(model.head) is nn.Linear
    assert torch.allclose(model(batch), expected, atol=1e-6)


@pytest.mark.parametrize("order", ["model first", "state first", "before compress"])
@pytest.mark.parametrize("name", EVERY)
def test_resumed_it_is_the_same_and_can_be_undone(name, order):
    model, (batch,) = decoder(), tokens(1, seed=9)
    dense = copy.deepcopy(model.state_dict())
    compressor = attached(name, model)
    stream = io.BytesIO()
    torch.save([model.state_dict(), compressor.state_dict()], stream)
    stream.seek(0)
    state, own = torch.load(stream, weights_only=True)
    expected = model(batch)

    again = decoder()
    config = {"compressor": name, **EVERY[name]}
    resumed = engine.create_compressor(again, config, batches=tokens())
    if order == "before compress":
        again.load_state_dict(state)
        resumed.load_state_dict(own)
        resumed.compress()
    else:
        resumed.compress()
        if order == "model first":
            again.load_state_dict(state)
        resumed.load_state_dict(own)
        if order == "state first":
            resumed.load_model_state_dict(state)
    assert same(state, again.state_dict())
    assert torch.equal(again(batch), expected)
    resumed.unwrap()
    assert same(dense, again.state_dict())


def test_a_schedule_asks_again_and_bakes():
    model = decoder(depth=1)
    entry = {"final_sparsity": 0.6, "end_epoch": 2, **LINEAR}
    config = {"compressor": "agp", "pruning_algorithm": "wanda", "config_list": [entry]}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    pruner = engine.create_compressor(model, config, optimizer, batches=tokens())
    state = copy.deepcopy(model.state_dict())
    pruner.compress()
    assert same(state, model.state_dict())  # nothing at epoch 0
    found = []
    for epoch in range(3):
        pruner.update_epoch(epoch)
        model(tokens(1)[0]).square().mean().backward()
        optimizer.step()
        found.append(float((model.layers[0].q.weight == 0).float().mean()))
    assert found == sorted(found)
    assert found[-1] == pytest.approx(0.6, abs=0.01)
    pruner.unwrap(bake=True)
    assert float((model.layers[0].q.weight == 0).float().mean()) == found[-1]


def test_a_schedule_that_was_not_trained_gives_the_dense_model_back():
    model = decoder(depth=1)
    state = copy.deepcopy(model.state_dict())
    entry = {"final_sparsity": 0.6, "initial_sparsity": 0.3, "end_epoch": 2, **LINEAR}
    config = {"compressor": "agp", "pruning_algorithm": "sparse_gpt", "config_list": [entry]}
    for bake in (False, True):
        pruner = engine.create_compressor(model, config, batches=tokens())
        pruner.compress()
        changed = copy.deepcopy(model.state_dict())
        pruner.unwrap(bake=bake)
        assert same(changed if bake else state, model.state_dict())
    assert not same(state, changed)


def test_gptq_lies_on_the_grid_that_is_exported():
    model = decoder(depth=1)
    quantizer = attached("gptq", model)
    for wrapper in quantizer.get_modules_wrapper():
        form = quantizer.affine_form(wrapper, QuantType.WEIGHT)
        integers = form.integers(wrapper.weight)
        assert torch.equal(form.values(integers), wrapper.weight)
        assert torch.equal(wrapper.module.weight, wrapper.weight)
        assert int(integers.abs().max()) <= 7
        scale, zero = form.broadcast(integers.shape)
        assert torch.equal(dequantize(integers.float(), scale, zero), wrapper.weight)


def test_gptq_written_and_read_computes_the_same(tmp_path):
    model, (batch,) = decoder(depth=1), tokens(1, seed=9)
    quantizer = attached("gptq", model)
    quantizer.export_model(tmp_path / "model.pth")
    loaded = engine.load_quantized(decoder(seed=1, depth=1), tmp_path / "model.pth")
    assert torch.allclose(loaded(batch), model(batch), atol=1e-6)


def test_a_tied_embedding_stays_one():
    torch.manual_seed(0)
    model = decoder(depth=1)
    model.head.weight = model.embed.weight
    entry = {**GROUPS, "quant_scheme": "per_group_symmetric", "op_types": ["Linear", "Embedding"]}
    with pytest.warns(UserWarning, match=r'1 of \d+ layers were rounded to nearest: "embed"'):
        quantizer = attached("gptq", model, config_list=[entry])
    assert model.head.weight is not None
    assert torch.equal(model.head.weight, model.embed.weight)
    quantizer.unwrap(bake=True)
    assert model.head.weight is model.embed.weight


# -- the contract ------------------------------------------------------------------------------


class Halves(Pruner):
    """Zeros where inputs are smallest, the others doubled."""

    def calibrate_layer(self, wrapper, inputs, sparsity):
        mask = torch.ones_like(wrapper.weight)
        mask[:, : int(mask.shape[1] * sparsity)] = 0
        return LayerResult(mask, wrapper.weight * 2)


def test_a_mask_and_a_weight():
    model = decoder(depth=1)
    before = model.layers[0].q.weight.detach().clone()
    pruner = Halves(model, [{"sparsity": 0.25, **LINEAR}], batches=tokens())
    pruner.compress()
    assert torch.equal(model.layers[0].q.weight[:, 8:], before[:, 8:] * 2)
    assert not model.layers[0].q.weight[:, :8].any()
    assert torch.equal(pruner.wrappers[0].weight_mask[0], torch.tensor([0.0] * 8 + [1.0] * 24))


def wrong(result, base=Pruner):
    class Wrong(base):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            if base is Quantizer:
                for wrapper in self.wrappers:
                    keep_grid(wrapper, QuantType.WEIGHT, scheme_of(wrapper, QuantType.WEIGHT))

        def quantize_weight(self, weight, wrapper):
            return wrapper.grids["weight"].over_extremes(weight)

        def calibrate_layer(self, wrapper, inputs):
            if wrapper.name.endswith("o"):
                return result(wrapper)
            return LayerResult(weight=wrapper.weight * 2)

    if base is Pruner:
        del Wrong.quantize_weight
    return Wrong


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda w: w.weight, "returned a Parameter"),
        (lambda w: LayerResult(weight=w.weight[:3]), r"a weight of shape \(3, 32\) for one of"),
        (lambda w: LayerResult(weight=w.weight * torch.nan), "holds NaN"),
        (lambda w: LayerResult(mask=w.weight * 0.3), "neither 0 nor 1"),
        (lambda w: LayerResult(grid=(w.weight, w.weight)), "a grid, which it has no use for"),
        (lambda w: 1 / 0, "ZeroDivisionError"),
    ],
)
def test_an_answer_that_is_no_good_changes_nothing(result, message):
    model = decoder(depth=1)
    state = copy.deepcopy(model.state_dict())
    pruner = wrong(result)(model, [{"sparsity": 0.25, **LINEAR}], batches=tokens())
    with pytest.raises(PluginError, match=message) as caught:
        pruner.compress()
    assert "layers.0.o" in str(caught.value)
    assert same(state, model.state_dict())


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda w: LayerResult(mask=torch.ones_like(w.weight)), "a mask, which it has no use for"),
        (lambda w: LayerResult(grid=(torch.ones(3), torch.ones(3))), "a grid that is none: scale"),
        (lambda w: LayerResult(grid=(torch.tensor(0.0), torch.tensor(0.0))), "not above 0"),
    ],
)
def test_a_quantizers_answer_that_is_no_good_changes_nothing(result, message):
    model = decoder(depth=1)
    state = copy.deepcopy(model.state_dict())
    entry = {"quant_types": ["weight"], "quant_bits": 8, **LINEAR}
    quantizer = wrong(result, Quantizer)(model, [entry], batches=tokens())
    with pytest.raises(PluginError, match=message):
        quantizer.compress()
    assert same(state, model.state_dict())
    assert type(model.layers[0].q) is nn.Linear


@pytest.mark.parametrize("name", EVERY)
def test_missing_batches_are_named(name):
    config = {"compressor": name, **EVERY[name]}
    with pytest.raises(ConfigError, match=r"batches is missing\n  needs: inputs to calibrate with"):
        engine.create_compressor(decoder(), config)


@pytest.mark.parametrize("batches", [{"input_ids": 1}, 3])
def test_batches_that_are_none(batches):
    config = {"compressor": "wanda", **EVERY["wanda"]}
    with pytest.raises(ConfigError, match=f"batches is a {type(batches).__name__}"):
        engine.create_compressor(decoder(), config, batches=batches)


def test_batches_are_named_in_a_file(tmp_path, monkeypatch):
    (tmp_path / "my_calibration_data.py").write_text(
        "import torch\n"
        "def batches():\n    return [torch.arange(8).view(2, 4)] * 2\n"
        "def forward(model, batch):\n    model(input_ids=batch)\n"
    )
    (tmp_path / "job.yaml").write_text(
        "compressor: wanda\n"
        "config_list: [{sparsity: 0.5, op_types: [Linear]}]\n"
        "batches: my_calibration_data:batches\n"
        "forward: my_calibration_data:forward\n"
    )
    monkeypatch.chdir(tmp_path)
    model = decoder(depth=1)
    engine.create_compressor(model, "job.yaml").compress()
    assert float((model.head.weight == 0).float().mean()) == 0.5


def test_a_constraint_around_a_one_shot_pruner_is_refused():
    config = {
        "compressor": "wanda",
        **EVERY["wanda"],
        "extensions": [{"channel_rounding": {"round_to": 4}}],
    }
    compressor = engine.create_compressor(decoder(), config, batches=tokens())
    with pytest.raises(PluginError, match="leave the extension out"):
        compressor.compress()


# -- the undo log ------------------------------------------------------------------------------


def test_what_is_written_since_is_not_put_back():
    model = decoder(depth=1)
    pruner = attached("wanda", model)
    with torch.no_grad():
        model.head.weight.fill_(3)
    pruner.unwrap()
    assert bool((model.head.weight == 3).all())


def test_trained_it_keeps_what_was_made():
    model = decoder(depth=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    config = {"compressor": "sparse_gpt", **EVERY["sparse_gpt"]}
    pruner = engine.create_compressor(model, config, optimizer, batches=tokens())
    pruner.compress()
    model(tokens(1)[0]).square().mean().backward()
    optimizer.step()
    state = copy.deepcopy(model.state_dict())
    pruner.unwrap()
    assert same(state, model.state_dict())
    assert float((model.head.weight == 0).float().mean()) == pytest.approx(0.5, abs=0.01)


def test_ptq_bakes_its_corrected_biases():
    """And gives back what it corrected and equalized, bit for bit."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    state, x = copy.deepcopy(model.state_dict()), torch.rand(64, 8)
    entry = {"quant_types": ["weight"], "quant_bits": 2, **LINEAR}
    options = {"bias_correction": True, "cross_layer_equalization": True}
    config = {"compressor": "ptq", "config_list": [entry], **options}
    quantizer = engine.create_compressor(model, config, batches=[x])
    quantizer.compress()
    expected = model(x)
    quantizer.unwrap()
    assert same(state, model.state_dict())
    quantizer.compress()
    assert torch.equal(model(x), expected)
    quantizer.unwrap(bake=True)
    assert torch.allclose(model(x), expected, atol=1e-6)
