"""Scales of output channels, wherever a layer's weight has them."""

import pytest
import torch
from integers import run_file
from torch import nn

import engine
from engine import ConfigError, QuantType
from engine.algorithms import L1FilterPruner, LSQQuantizer, NaiveQuantizer, PTQQuantizer
from engine.attach.layout import Layout, layout_of
from engine.quantization.mixed_precision import scan_bits


class Conv1D(nn.Module):
    """As transformers has it: ``weight`` is (inputs, outputs), ``nf`` the outputs."""

    def __init__(self, nf, nx):
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight = nn.Parameter(torch.randn(nx, nf))
        self.bias = nn.Parameter(torch.randn(nf))

    def forward(self, x):
        size = (*x.size()[:-1], self.nf)
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(size)


class Stranger(nn.Module):
    """A linear layer whose class says nothing of its weight, (inputs, outputs)."""

    def __init__(self, inputs=6, outputs=6):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs))

    def forward(self, x):
        return x @ self.weight


class Told(Stranger):
    output_channel_axis = 1


def unequal(layer):
    """Give each output channel of ``layer`` a size of its own, from 0.001 to 10."""
    layout = layout_of(layer)
    count = layout.count(layer.weight.shape)
    with torch.no_grad():
        layer.weight.mul_(layout.spread(torch.logspace(-3, 1, count), layer.weight.shape))
        if getattr(layer, "bias", None) is not None:
            layer.bias.zero_()


# Each layer, an input, and the axis of its output that counts channels.
LAYERS = {
    "conv1d_of_transformers": lambda: (Conv1D(6, 6), torch.randn(4, 3, 6), -1),
    "told": lambda: (Told(), torch.randn(9, 6), -1),
    "depthwise_transposed": lambda: (
        nn.ConvTranspose2d(6, 6, 3, groups=6),
        torch.randn(2, 6, 5, 4),
        1,
    ),
    "grouped_transposed": lambda: (nn.ConvTranspose1d(4, 6, 3, groups=2), torch.randn(2, 4, 7), 1),
    "multiplied_transposed": lambda: (
        nn.ConvTranspose2d(3, 12, 2, groups=3),
        torch.randn(2, 3, 5, 5),
        1,
    ),
    "transposed": lambda: (nn.ConvTranspose3d(2, 5, 2), torch.randn(1, 2, 3, 3, 3), 1),
    "grouped": lambda: (nn.Conv2d(4, 6, 3, groups=2), torch.randn(2, 4, 7, 7), 1),
}


def worst_channel(layer, x, axis, quantize):
    unequal(layer)
    with torch.no_grad():
        exact = layer(x).movedim(axis, 0).flatten(1)
        quantizer, model = quantize(layer)
        off = (model(x).movedim(axis, 0).flatten(1) - exact).abs().amax(1)
    return quantizer, float((off / exact.abs().amax(1)).max())


def by(name, scheme="per_channel_symmetric", **more):
    def quantize(layer):
        kind = type(layer).__name__
        settings = {"op_types": [kind], "quant_types": ["weight"], "quant_bits": 8}
        entry = {**settings, "quant_scheme": scheme, **more}
        quantizer = name(nn.Sequential(layer).eval(), [entry])
        return quantizer, quantizer.compress()

    return quantize


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize(
    "quantize",
    [by(PTQQuantizer), by(NaiveQuantizer), by(PTQQuantizer, "per_channel_affine"),
     by(PTQQuantizer, "per_group_symmetric", quant_group_size=2)],
)  # fmt: skip
def test_each_output_channel_has_a_scale_of_its_own(kind, quantize):
    torch.manual_seed(1)
    assert worst_channel(*LAYERS[kind](), quantize)[1] < 0.02


@pytest.mark.parametrize("kind", ["conv1d_of_transformers", "grouped_transposed", "transposed"])
def test_learned_steps_are_one_for_each_output_channel(kind):
    torch.manual_seed(2)
    layer, x, axis = LAYERS[kind]()
    quantizer, worst = worst_channel(layer, x, axis, by(LSQQuantizer))
    assert worst < 0.1
    model = quantizer.bound_model.train()
    model(x).square().sum().backward()
    (step,) = quantizer.learned_parameters()
    assert step.grad.count_nonzero() == step.numel() == layout_of(layer).count(layer.weight.shape)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("scheme", ["per_channel_affine", "per_group_symmetric"])
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_packed_files_give_back_each_bit(kind, scheme, suffix, tmp_path):
    torch.manual_seed(3)
    layer, x, axis = LAYERS[kind]()
    quantizer, _ = worst_channel(layer, x, axis, by(PTQQuantizer, scheme))
    quantizer.export_model(tmp_path / f"m.{suffix}")
    plain = engine.load_quantized(nn.Sequential(LAYERS[kind]()[0]), tmp_path / f"m.{suffix}")
    assert torch.equal(plain[0].weight, layer.weight)
    form = quantizer.affine_form(quantizer.wrappers[0], QuantType.WEIGHT)
    assert torch.equal(form.values(form.integers(layer.weight)), layer.weight)


@pytest.mark.parametrize(
    "kind", ["conv1d_of_transformers", "grouped_transposed", "multiplied_transposed"]
)
@pytest.mark.parametrize("scheme", ["per_channel_affine", "per_group_symmetric"])
def test_onnx_files_compute_with_the_same_scales(kind, scheme, tmp_path):
    torch.manual_seed(4)
    layer, x, axis = LAYERS[kind]()
    quantizer, _ = worst_channel(layer, x, axis, by(PTQQuantizer, scheme))
    quantizer.export_model(tmp_path / "m.pth", None, tmp_path / "m.onnx", input_shape=list(x.shape))
    found, _ = run_file(tmp_path / "m.onnx", x)
    expected = quantizer.bound_model(x).detach()
    # ONNX Runtime by itself rounds inputs of products with integer weights to 8 bits.
    assert (found - expected).abs().max() <= 0.01 * expected.abs().max()


@pytest.mark.parametrize("scheme", ["per_channel_symmetric", "per_group_affine"])
def test_a_layout_that_nobody_knows_is_refused_by_channel_and_named(scheme):
    with pytest.raises(ConfigError) as caught:
        by(PTQQuantizer, scheme)(Stranger())
    assert 'layer "0" is a Stranger' in str(caught.value)
    assert "per_tensor_symmetric" in str(caught.value)


def test_a_layout_that_nobody_knows_has_one_scale_if_asked():
    layer = Stranger()
    by(PTQQuantizer, "per_tensor_symmetric")(layer)
    assert len(layer.weight.unique()) > 2


def test_bits_are_not_scanned_by_channel_of_a_layout_that_nobody_knows():
    model = nn.Sequential(Stranger(), nn.Linear(6, 2))
    with pytest.raises(ConfigError, match='layer "0" is a Stranger'):
        scan_bits(model, batches=[torch.randn(3, 6)], config_list=[{"op_types": ["Stranger"]}])


def test_scanning_bits_gives_a_scale_to_each_channel_of_each_group():
    torch.manual_seed(5)
    layer = nn.ConvTranspose1d(4, 6, 1, groups=2, bias=False)
    unequal(layer)
    x = torch.randn(3, 4, 8)
    of_type = [{"op_types": ["ConvTranspose1d"]}]
    (found,) = scan_bits(nn.Sequential(layer), batches=[x], bits=(8,), config_list=of_type)
    assert found.channels == 6
    assert found.harm[8] < 1e-4


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 2), (6, 2, 2, 1)])
@pytest.mark.parametrize("layout", [Layout(0), Layout(1), Layout(1, 2)])
def test_rows_are_restored_and_spread_alike(shape, layout):
    tensor = torch.arange(float(torch.Size(shape).numel())).view(shape)
    rows = layout.rows(tensor)
    assert torch.equal(layout.restored(rows, tensor.shape), tensor)
    numbers = torch.arange(float(rows.shape[0]))
    spread = layout.spread(numbers, tensor.shape)
    assert torch.equal(layout.rows(spread), numbers[:, None].expand_as(rows))


def test_filters_of_a_conv1d_of_transformers_are_its_columns():
    layer = Conv1D(4, 3)
    with torch.no_grad():
        layer.weight[:, 2] *= 1e-3
    model = nn.Sequential(layer)
    L1FilterPruner(model, [{"op_types": ["Conv1D"], "sparsity": 0.25}]).compress()
    assert layer.weight.detach().eq(0).all(0).tolist() == [False, False, True, False]
