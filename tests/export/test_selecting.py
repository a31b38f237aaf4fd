"""Operators that only select, move or repeat values keep the grid of what they read."""

import pytest
import torch
import torch.nn.functional as F
from integers import program_of, quantized, run_file
from torch import nn

from engine.export.integer_program import integer_program

SELECTIONS = {
    "padded with zeros": lambda h: F.pad(h, (1, 0, 0, 1)),
    "padded by reflection": lambda h: F.pad(h, (1, 1, 1, 1), mode="reflect"),
    "padded in a circle": lambda h: F.pad(h, (1, 1, 1, 1), mode="circular"),
    "upsampled": lambda h: F.interpolate(h, scale_factor=2.0),
    "a chunk": lambda h: h.chunk(2, dim=1)[1].repeat(1, 2, 1, 1),
    "split unevenly": lambda h: torch.cat(h.split([2, 4], dim=1)[::-1], dim=1),
    "unbound": lambda h: h.unflatten(1, (2, 3)).unbind(1)[1].repeat(1, 2, 1, 1),
    "rolled": lambda h: h.roll(1, dims=2).flip(1),
    "gathered": lambda h: h[:, [0, 2, 4, 1, 1, 5]],
    "unshuffled": lambda h: F.pixel_unshuffle(F.pixel_shuffle(h[:, :4], 2), 2).repeat(1, 2, 1, 1)[
        :, :6
    ],
}


class Between(nn.Module):
    """Two convolutions, and a function of what goes from the first to the second."""

    def __init__(self, function):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 3)
        self.function = function

    def forward(self, x):
        return self.second(self.function(self.first(x)))


def pictures():
    return torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", SELECTIONS)
def test_a_convolution_writes_integers_through_a_selection(name):
    model, x = Between(SELECTIONS[name]), pictures()
    output, placements = program_of(quantized(model, x, "ptq"), x)
    assert [p.reason for p in placements] == ["", "the output is not quantized"]
    close = torch.isclose(output, model(x), rtol=1e-4, atol=1e-5)
    assert close.float().mean() > 0.9  # the others: a bias decided between two integers


def test_a_constant_that_is_on_no_grid_stands_between():
    model = Between(lambda h: F.pad(h, (1, 1, 1, 1), value=0.123))
    _, placements = program_of(quantized(model, pictures(), "ptq"), pictures())
    assert placements[0].reason == "the output is not quantized"


class Shuffled(nn.Module):
    """Half of the channels passes a branch, the other half is carried along, as in ShuffleNet."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)
        self.branch = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        kept, passed = F.relu(self.stem(x)).chunk(2, dim=1)
        both = torch.cat((kept, F.relu(self.branch(passed))), dim=1)
        kept, passed = both.chunk(2, dim=1)
        return self.head(torch.cat((passed, kept), dim=1))


def test_parts_of_a_concatenation_are_joined_as_integers(tmp_path):
    pytest.importorskip("onnxruntime")
    model, x = Shuffled(), pictures()
    quantizer = quantized(model, x, "ptq")
    path = tmp_path / "n.onnx"
    quantizer.export_model(
        tmp_path / "n.pth", onnx_path=path, input_shape=[1, 3, 8, 8], batches=[x]
    )
    output, operators = run_file(path, x)
    assert (operators["QLinearConcat"], operators["Concat"]) == (2, 0)
    span = model(x).max() - model(x).min()
    assert (output - model(x)).abs().max() <= 3 * span / 255


class InPlace(nn.Module):
    """Adds to a part of a tensor that is also read by who computes the addend."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        h = F.relu(self.a(x))
        h[:, :] += self.b(h)
        return self.c(h)


class InPlaceHalf(InPlace):
    """The same for some of the channels."""

    def forward(self, x):
        h = F.relu(self.a(x))
        h[:, 1:] += self.b(h)[:, 1:]
        return self.c(h)


@pytest.mark.parametrize("cls", [InPlace, InPlaceHalf])
def test_a_sum_in_place_is_an_integer_kernel(cls):
    model, x = cls(), pictures()
    exported = integer_program(quantized(model, x, "ptq"), x, [x])
    assert all(p.integer for p in exported.placements)
    assert [p.operator for p in exported.placements].count("add") == 1
    span = model(x).max() - model(x).min()
    assert (exported.program.module()(x) - model(x)).abs().max() <= 4 * span / 255
