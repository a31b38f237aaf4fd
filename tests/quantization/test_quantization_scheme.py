"""Integers, channels and groups: which there are, and what shares a scale."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import mlp
from torch import nn

from engine import ConfigError, QuantType, Wrapper
from engine.algorithms import NaiveQuantizer, QAT_Quantizer
from engine.quantization import Scheme, fake_quantize, scheme_of


def round_over_extremes(weight: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    arranged = scheme.arranged(weight)
    scale, zero_point = scheme.parameters(*scheme.extremes(arranged))
    rounded = fake_quantize(arranged, scale, zero_point, scheme.qmin, scheme.qmax)
    return scheme.restored(rounded, weight.shape)


@pytest.mark.parametrize(
    ("symmetric", "signed", "bits", "integers"),
    [
        (False, False, 8, (0, 255)),
        (False, True, 8, (-128, 127)),
        (True, True, 8, (-127, 127)),
        (True, False, 8, (0, 255)),
        (True, True, 2, (-1, 1)),
        (False, False, 1, (0, 1)),
        (False, True, 1, (-1, 0)),
        (False, True, 16, (-32768, 32767)),
    ],
)
def test_the_integers_of_each_scheme(symmetric, signed, bits, integers):
    scheme = Scheme(bits, symmetric, signed)
    assert (scheme.qmin, scheme.qmax) == integers


@pytest.mark.parametrize(("bits", "said"), [(0, "0 bits"), (17, "17 bits"), (1, "0 alone")])
def test_bits_that_leave_no_integers_are_refused(bits, said):
    with pytest.raises(ValueError, match=said):
        Scheme(bits, symmetric=True, signed=True)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(1, 5), min_size=2, max_size=4).map(tuple),
    st.integers(1, 7),
    st.integers(0, 1),
)
def test_groups_are_arranged_and_restored(shape, size, axis):
    tensor = torch.arange(float(torch.Size(shape).numel())).view(shape) + 1
    scheme = Scheme(4, axis=axis, group_size=size)
    arranged = scheme.arranged(tensor)
    assert torch.equal(scheme.restored(arranged, tensor.shape), tensor)
    assert arranged.shape[0] == shape[axis]
    assert arranged.shape[2] == size
    low, high = scheme.extremes(arranged)
    assert low.shape == high.shape == scheme.scale_shape(tensor.shape)
    # Each row of a channel in pieces of ``size``; what fills the last one up is zero.
    rows = tensor.movedim(axis, 0).flatten(1)
    for channel, row in enumerate(rows):
        for group, piece in enumerate(row.split(size)):
            assert high[channel, group] == piece.max()
            assert arranged[channel, group, : len(piece)].tolist() == piece.tolist()
            assert (arranged[channel, group, len(piece) :] == 0).all()


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("axis", [0, 1])
def test_each_channel_is_rounded_as_it_would_be_alone(symmetric, axis):
    weight = torch.randn(4, 5, 3) * torch.tensor([0.1, 1, 10, 100, 1000]).view(1, 5, 1)
    scheme = Scheme(4, symmetric, symmetric, axis)
    alone = Scheme(4, symmetric, symmetric)
    channels = [round_over_extremes(channel, alone) for channel in weight.unbind(axis)]
    assert torch.equal(round_over_extremes(weight, scheme), torch.stack(channels, axis))


@pytest.mark.parametrize("size", [1, 2, 5, 6, 99])
def test_each_group_is_rounded_as_it_would_be_alone(size):
    weight = torch.randn(3, 12)

    def alone(piece):
        return round_over_extremes(piece[None], Scheme(3, axis=0, group_size=len(piece)))[0]

    rows = [torch.cat([alone(piece) for piece in row.split(size)]) for row in weight]
    scheme = Scheme(3, axis=0, group_size=size)
    assert torch.equal(round_over_extremes(weight, scheme), torch.stack(rows))


@pytest.mark.parametrize("symmetric", [False, True])
def test_scales_of_groups_are_bfloat16_and_hold_the_range(symmetric):
    weight = torch.randn(4, 64) * torch.logspace(-6, 6, 4)[:, None]
    scheme = Scheme(4, symmetric, symmetric, axis=0, group_size=8)
    low, high = scheme.extremes(scheme.arranged(weight))
    scale, zero_point = scheme.parameters(low, high)
    exact = torch.maximum(-low, high) / 7 if symmetric else (high - low) / 15
    assert torch.equal(scale.to(torch.bfloat16).float(), scale)
    assert bool((scale >= exact).all())
    assert bool((scale <= exact * (1 + 2**-7)).all())
    position = weight.view(4, 8, 8) / scale + zero_point
    assert position.min() >= scheme.qmin - 0.5
    assert position.max() <= scheme.qmax + 0.5


def test_smaller_groups_are_nearer():
    torch.manual_seed(1)
    weight = torch.randn(16, 256)
    schemes = [Scheme(4), Scheme(4, axis=0), *(Scheme(4, axis=0, group_size=n) for n in (128, 32))]
    errors = [(round_over_extremes(weight, s) - weight).square().mean().item() for s in schemes]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.5 * errors[0]


def test_a_weight_of_one_dimension_has_a_scale_for_each_value():
    weight = torch.tensor([0.5, -3.0])
    assert torch.allclose(round_over_extremes(weight, Scheme(4, True, True, 0)), weight)


# -- from a configuration ----------------------------------------------------------------------


def of(quant_type=QuantType.WEIGHT, module=None, **config) -> Scheme:
    module = nn.Linear(64, 4) if module is None else module
    settings = {"quant_types": [quant_type.key], "quant_bits": 8, **config}
    return scheme_of(Wrapper(module, "layer", settings), quant_type)


def test_the_default_is_one_unsigned_affine_grid():
    assert of() == Scheme(8)


@pytest.mark.parametrize(
    ("text", "scheme"),
    [
        ("per_tensor_symmetric", Scheme(8, True, True)),
        ("per_channel_affine", Scheme(8, False, False, 0)),
        ("per_channel_symmetric", Scheme(8, True, True, 0)),
        ("per_group_affine", Scheme(8, False, False, 0, 32)),
    ],
)
def test_a_scheme_by_its_name(text, scheme):
    assert of(quant_scheme=text) == scheme
    assert of(quant_scheme={"weight": text, "input": "per_tensor_affine"}) == scheme


def test_activations_have_one_scale_whatever_is_said_for_all():
    assert of(QuantType.INPUT, quant_scheme="per_channel_symmetric") == Scheme(8, True, True)
    assert of(QuantType.OUTPUT, quant_scheme="per_group_affine") == Scheme(8)


def test_signs_may_be_said_by_type():
    entry = {"quant_dtype": {"weight": "int", "input": "uint"}}
    assert of(QuantType.WEIGHT, **entry).signed
    assert not of(QuantType.INPUT, quant_scheme="per_tensor_symmetric", **entry).signed


def test_the_channels_of_a_transposed_convolution_are_its_second_axis():
    module = nn.ConvTranspose2d(3, 5, 2)
    assert of(module=module, quant_scheme="per_channel_affine").axis == 1


def test_groups_have_the_size_that_is_said():
    assert of(quant_scheme="per_group_symmetric", quant_group_size=8).group_size == 8


def test_bits_that_leave_nothing_name_the_layer():
    with pytest.raises(ConfigError) as caught:
        of(quant_bits=1, quant_scheme="per_tensor_symmetric")
    assert str(caught.value) == (
        "configuration: 1 problem\n\n/config_list\n"
        '  the weight of layer "layer": signed and symmetric integers of 1 bit are 0 alone\n'
        "  needs: 1 to 16 bits, at least 2 where they are symmetric and int"
    )


@pytest.mark.parametrize("cls", [QAT_Quantizer, NaiveQuantizer])
@pytest.mark.parametrize("scheme", ["per_tensor", "per_channel", "per_group"])
@pytest.mark.parametrize("kind", ["affine", "symmetric"])
def test_a_quantizer_rounds_as_its_entry_says(cls, scheme, kind):
    model = mlp(40, 6)
    plain = model[0].weight.detach().clone()
    entry = {
        "op_types": ["Linear"],
        "quant_types": ["weight"],
        "quant_bits": 4,
        "quant_scheme": f"{scheme}_{kind}",
        "quant_group_size": 16,
    }
    cls(model, [entry]).compress()
    axis = None if scheme == "per_tensor" else 0
    size = 16 if scheme == "per_group" else None
    wanted = Scheme(4, kind == "symmetric", kind == "symmetric", axis, size)
    torch.testing.assert_close(model[0].weight, round_over_extremes(plain, wanted))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "quant_scheme",
            "per_tensor_afine",
            '"per_tensor_afine" is not one of the choices\n  qat allows: per_tensor_affine, '
            "per_tensor_symmetric, per_channel_affine, per_channel_symmetric, per_group_affine, "
            'per_group_symmetric\n  did you mean "per_tensor_affine"?',
        ),
        ("quant_dtype", "int8", '"int8" is not one of the choices\n  qat allows: int, uint'),
    ],
)
def test_a_misspelt_scheme_gets_the_nearest(key, value, message):
    entry = {"op_types": ["Linear"], "quant_types": ["weight"], "quant_bits": 8, key: value}
    with pytest.raises(ConfigError) as caught:
        QAT_Quantizer(mlp(), [entry])
    assert message in str(caught.value)


def test_channels_of_an_activation_are_refused():
    entry = {
        "op_types": ["Linear"],
        "quant_types": ["weight", "input"],
        "quant_bits": 8,
        "quant_scheme": {"input": "per_channel_affine"},
    }
    with pytest.raises(ConfigError, match="/config_list/0/quant_scheme/input"):
        QAT_Quantizer(mlp(), [entry])
