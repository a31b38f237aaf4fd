"""What can be scaled together is found, all of it, and nothing that changes the model."""

import copy

import pytest
import torch
from decoders import Block, Decoder, OnePlusNorm, decoder, tokens
from torch import nn

import engine
from engine import EngineError, Wrapper
from engine.calibration import Calibrated, walk

WHOLE = [
    (["layers.0.q", "layers.0.k", "layers.0.v"], 32),
    (["layers.0.o"], 16),
    (["layers.0.gate", "layers.0.up"], 32),
    (["layers.0.down"], 48),
]


def scalings(model, batches=None, only=nn.Linear):
    """Yield what is found in the first block, while it may be scaled."""
    own = [Wrapper(m, name, {}) for name, m in model.named_modules() if isinstance(m, only)]
    layers = walk(model, own, Calibrated(batches or tokens()))
    _, inputs = next(layers)
    yield from inputs.scalings()
    assert inputs.scalings() == []
    layers.close()


def names(found):
    return [
        ([w.name for w in s.readers], len(s.by_channel(torch.ones(_columns(s))))) for s in found
    ]


def _columns(scaling):
    return scaling.readers[0].weight.shape[1]


def write(parameter, value):
    with torch.no_grad():
        parameter.copy_(value)


@pytest.mark.parametrize("norm", [nn.RMSNorm, nn.LayerNorm, OnePlusNorm])
def test_a_decoder_with_grouped_queries(norm):
    assert names(scalings(decoder(norm=norm))) == WHOLE


@pytest.mark.parametrize("norm", [nn.RMSNorm, nn.LayerNorm, OnePlusNorm])
def test_scaled_by_anything_the_model_computes_the_same(norm):
    model = decoder(norm=norm).double()
    (batch,) = tokens(1, seed=9)
    before = model(batch)
    for scaling in scalings(model):
        columns = torch.rand(_columns(scaling), dtype=torch.float64) * 4 + 0.1
        factors = scaling.by_channel(columns)
        seen = scaling.inputs.means()
        scaling.multiply(factors, write)
        assert torch.allclose(scaling.inputs.means(), seen / scaling.by_column(factors))
    assert torch.allclose(model(batch), before, atol=1e-10)


def test_in_half_precision_too():
    assert names(scalings(decoder().bfloat16())) == WHOLE


def test_a_norm_with_a_second_reader_is_left_alone():
    assert names(scalings(decoder(router=True))) == [WHOLE[0], WHOLE[1], WHOLE[3]]


def test_readers_that_the_compressor_leaves_alone_are_scaled_along():
    model = decoder().double()
    own = [Wrapper(model.layers[0].q, "layers.0.q", {})]
    layers = walk(model, own, Calibrated(tokens()))
    _, inputs = next(layers)
    (scaling,) = inputs.scalings()
    (batch,) = tokens(1, seed=9)
    before, key = model(batch), model.layers[0].k.weight.clone()
    scaling.multiply(torch.full((32,), 2.0), write)
    assert torch.allclose(model(batch), before, atol=1e-10)
    assert torch.equal(model.layers[0].k.weight, key * 2)


class Fused(Block):
    """One layer makes queries, keys and values."""

    def __init__(self, **kwargs):
        super().__init__(groups=4, **kwargs)
        self.qkv = nn.Linear(32, 96)
        del self.q, self.k, self.v

    def forward(self, x, scale=1.0):
        q, k, v = (
            t.view(*x.shape[:2], 4, 8).transpose(1, 2) for t in self.qkv(self.norm1(x)).chunk(3, -1)
        )
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + scale * self.o(mixed.transpose(1, 2).reshape(x.shape))
        return (x + self.down(torch.relu(self.gate(self.norm2(x)))),)


def test_a_fused_layer_reads_and_relu_lets_through():
    torch.manual_seed(0)
    model = Decoder(depth=1)
    model.layers = nn.ModuleList([Fused()])
    assert names(scalings(model.eval())) == [
        (["layers.0.qkv"], 32),
        (["layers.0.gate"], 32),
        (["layers.0.down"], 48),
    ]


def test_factors_that_are_none():
    first, *_ = scalings(decoder())
    with pytest.raises(EngineError, match="above 0 and finite"):
        first.multiply(torch.zeros(32), write)


def test_looking_for_them_changes_nothing():
    model = decoder()
    state = copy.deepcopy(model.state_dict())
    list(scalings(model))
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


GROUPS = {"quant_types": ["weight"], "quant_bits": 3, "quant_group_size": 16}


@pytest.mark.parametrize("name", ["awq", "smooth_quant"])
def test_before_rounding_the_model_is_the_same(name):
    """A grid of 16 bits stands for none."""
    model, (batch,) = decoder(), tokens(1, seed=9)
    model.layers[0].norm1.weight.data[3] *= 50  # an outlier
    before = model(batch)
    entry = {"quant_types": ["weight"], "quant_bits": 16, "op_types": ["Linear"]}
    config = {"compressor": name, "config_list": [entry]}
    compressor = engine.create_compressor(model, config, batches=tokens())
    compressor.compress()
    assert torch.allclose(model(batch), before, atol=5e-3 * float(before.abs().max()))
    assert not torch.equal(model.layers[0].norm1.weight, decoder().layers[0].norm1.weight)


def test_awq_is_better_than_rounding_where_there_are_outliers():
    def error(**config):
        model, (batch,) = decoder(), tokens(1, seed=9)
        model.layers[0].norm1.weight.data[3] *= 50
        model.layers[1].norm2.weight.data[5] *= 50
        before = model(batch).detach()
        entry = {**GROUPS, "quant_scheme": "per_group_affine", "op_types": ["Linear"]}
        settings = {"config_list": [entry], **config}
        engine.create_compressor(model, settings, batches=tokens()).compress()
        return float((model(batch) - before).norm() / before.norm())

    rounded = error(compressor="ptq")
    assert error(compressor="awq", clip=False) < 0.8 * rounded
    assert error(compressor="gptq") < 0.8 * rounded


def test_smooth_quant_is_better_than_rounding_activations_with_outliers():
    def error(**config):
        model, (batch,) = decoder(), tokens(1, seed=9)
        model.layers[0].norm1.weight.data[3] *= 100
        before = model(batch).detach()
        entry = {"quant_types": ["weight", "input"], "quant_bits": 6, "op_types": ["Linear"]}
        settings = {"config_list": [entry], **config}
        engine.create_compressor(model, settings, batches=tokens()).compress()
        return float((model(batch) - before).norm() / before.norm())

    assert error(compressor="smooth_quant") < 0.7 * error(compressor="ptq")
