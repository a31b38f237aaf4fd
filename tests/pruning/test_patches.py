"""Rows of inputs times the weight are the layer's outputs, whatever its geometry."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from engine.calibration.patches import outputs_at, patches_at, positions


def check(layer, x, points):
    output = layer.double()(x)
    places = positions(layer, output, points, torch.Generator().manual_seed(0))
    rows = patches_at(layer, x, places)
    weight = layer.weight.flatten(1).view(rows.shape[1], -1, rows.shape[2])
    found = torch.einsum("pgk,gok->pgo", rows, weight).flatten(1)
    if layer.bias is not None:
        found = found + layer.bias
    assert torch.allclose(found, outputs_at(layer, output, places), atol=1e-12)
    assert len(places) == len(set(places.tolist()))
    return places


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_of_any_convolution(data):
    draw = data.draw
    dims = draw(st.integers(1, 3))
    groups = draw(st.integers(1, 3))
    kernel = [draw(st.integers(1, 3)) for _ in range(dims)]
    dilation = [draw(st.integers(1, 2)) for _ in range(dims)]
    same = draw(st.booleans())
    layer = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1](
        groups * draw(st.integers(1, 2)),
        groups * draw(st.integers(1, 2)),
        kernel,
        1 if same else [draw(st.integers(1, 2)) for _ in range(dims)],
        "same" if same else [draw(st.integers(0, 2)) for _ in range(dims)],
        dilation,
        groups,
        draw(st.booleans()),
        draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"])),
    )
    examples = draw(st.integers(1, 3))
    sizes = [draw(st.integers(5, 7)) for _ in range(dims)]
    x = torch.randn(examples, layer.in_channels, *sizes, dtype=torch.float64)
    points = draw(st.integers(1, 4))
    assert len(check(layer, x, points)) <= points * examples


@pytest.mark.parametrize("shape", [(5,), (4, 5), (2, 3, 5), (2, 3, 4, 5)])
def test_of_a_linear_layer_on_inputs_of_any_number_of_dimensions(shape):
    check(nn.Linear(5, 3), torch.randn(shape, dtype=torch.float64), 2)


def test_of_a_convolution_without_a_dimension_of_examples():
    check(nn.Conv2d(2, 3, 3), torch.randn(2, 6, 6, dtype=torch.float64), 4)


def test_all_places_are_looked_at_where_there_are_no_more():
    places = check(nn.Conv2d(1, 2, 3), torch.randn(2, 1, 4, 4, dtype=torch.float64), 100)
    assert places.tolist() == list(range(8))
