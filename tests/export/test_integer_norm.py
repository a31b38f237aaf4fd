"""Batch norms that are found in the exported graph are folded: the same values, integer kernels."""

import pytest
import torch
import torch.nn.functional as F
from integers import program_of, quantized
from torch import nn

import engine
from engine.export.integer_program import integer_program


class NormAndActivation(nn.BatchNorm2d):
    """A batch norm with an activation inside, as model zoos have them."""

    def __init__(self, channels, **settings):
        super().__init__(channels, **settings)
        self.act = nn.ReLU()

    def forward(self, x):
        mean, var = self.running_mean, self.running_var
        x = F.batch_norm(x, mean, var, self.weight, self.bias, self.training, 0.1, self.eps)
        return self.act(x)


class Net(nn.Module):
    """Two convolutions with such norms, and a linear layer with a norm behind it."""

    def __init__(self, bias=False, **settings):
        super().__init__()
        self.first, self.norm1 = nn.Conv2d(3, 6, 3, bias=bias), NormAndActivation(6, **settings)
        self.second, self.norm2 = nn.Conv2d(6, 4, 3, bias=bias), NormAndActivation(4, **settings)

    def forward(self, x):
        if x.sum() is None:  # symbolic tracing sees no modules here
            return x
        return self.norm2(self.second(self.norm1(self.first(x))))


def trained(model, seed=0):
    """Give the norms statistics and signs of their own."""
    generator = torch.Generator().manual_seed(seed)
    for norm in [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]:
        norm.running_mean.normal_(generator=generator)
        norm.running_var.uniform_(0.5, 2.0, generator=generator)
        if norm.weight is not None:
            norm.weight.data.normal_(generator=generator)
            norm.bias.data.normal_(generator=generator)
    return model


def pictures():
    return torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(3))


def targets(exported):
    return [str(node.target) for node in exported.program.graph.nodes]


SCHEMES = ["per_channel_symmetric", "per_tensor_symmetric", "per_tensor_affine"]


@pytest.mark.parametrize("weights", SCHEMES)
@pytest.mark.parametrize("settings", [{}, {"bias": True}, {"affine": False}])
def test_a_norm_with_an_activation_is_folded_and_values_stay(weights, settings):
    model, x = trained(Net(**settings)), pictures()
    quantizer = quantized(model, x, "ptq", weights=weights)
    exported = integer_program(quantizer, x)
    assert not [name for name in targets(exported) if "batch_norm" in name]
    assert [p.integer for p in exported.placements] == [True, False]
    output, expected = exported.program.module()(x), model(x)
    assert torch.isclose(output, expected, rtol=1e-4, atol=1e-4).float().mean() > 0.9
    step = (
        float(quantizer.wrappers[1].input_scale)
        * (
            model.second.weight.abs().amax((1, 2, 3))
            * (model.norm2.weight.abs() if model.norm2.affine else 1)
            / (model.norm2.running_var + model.norm2.eps).sqrt()
        ).max()
    )
    assert (output - expected).abs().max() <= 3 * step


def test_a_channel_whose_factor_is_zero_is_its_bias():
    model, x = trained(Net()), pictures()
    model.norm2.weight.data[1] = 0
    output, _ = program_of(quantized(model, x, "ptq"), x)
    expected = model.norm2.bias[1].relu().expand(output[:, 1].shape)
    torch.testing.assert_close(output[:, 1], expected)


class Twice(nn.Module):
    """One convolution, a norm for each of its two calls."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.norms = nn.ModuleList([NormAndActivation(3), NormAndActivation(3)])

    def forward(self, x):
        return self.norms[1](self.conv(self.norms[0](self.conv(x))))


def test_a_weight_that_two_norms_would_change_differently_keeps_them():
    model, x = trained(Twice()), pictures()
    exported = integer_program(quantized(model, x, "ptq"), x)
    assert len([name for name in targets(exported) if "batch_norm" in name]) == 2
    close = torch.isclose(exported.program.module()(x), model(x), rtol=1e-4, atol=1e-4)
    assert close.float().mean() > 0.9


class Tokens(nn.Module):
    """The norm's channels are the second dimension, the linear layer's the third, of one size."""

    def __init__(self):
        super().__init__()
        self.fc, self.norm = nn.Linear(5, 5), nn.BatchNorm1d(5)

    def forward(self, x):
        h = self.fc(x)
        mean, var = self.norm.running_mean, self.norm.running_var
        return F.batch_norm(h, mean, var, self.norm.weight, self.norm.bias, False, 0.1, 1e-5)


def test_a_norm_over_another_dimension_is_not_folded_into_a_linear_layer():
    model, x = trained(Tokens()), torch.randn(4, 5, 5)
    output, _ = program_of(quantized(model, x, "ptq"), x)
    torch.testing.assert_close(output, model(x), rtol=1e-4, atol=1e-4)


def test_a_norm_behind_a_linear_layer_of_two_dimensions_is_folded():
    model, x = trained(Tokens()), torch.randn(16, 5)
    exported = integer_program(quantized(model, x, "ptq"), x)
    assert not [name for name in targets(exported) if "batch_norm" in name]
    output = exported.program.module()(x)
    torch.testing.assert_close(output, model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("weights", ["per_channel_symmetric", "per_tensor_affine"])
@pytest.mark.parametrize(("groups", "folded"), [(1, True), (2, False)])
def test_a_norm_behind_a_transposed_convolution_is_folded_where_channels_are_one_axis(
    weights, groups, folded
):
    layers = nn.Sequential(nn.ConvTranspose2d(3 * groups, 4, 3, groups=groups), nn.BatchNorm2d(4))
    model, x = trained(layers).eval(), torch.randn(4, 3 * groups, 5, 5)
    config = [{"op_types": ["ConvTranspose2d"], "quant_types": ["weight"], "quant_bits": 8}]
    config[0]["quant_scheme"] = weights
    quantizer = engine.create_compressor(model, {"compressor": "ptq", "config_list": config})
    quantizer.compress()
    exported = integer_program(quantizer, x)
    assert any("batch_norm" in name for name in targets(exported)) is not folded
    torch.testing.assert_close(exported.program.module()(x), model(x), rtol=1e-4, atol=1e-4)
