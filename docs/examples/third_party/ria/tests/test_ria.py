"""The engine's checks, and what is special about relative importance and activations."""

import pytest
import torch
from engine_ria import RIAPruner
from torch import nn

from engine.testing import PrunerConformance


class TestRIAPruner(PrunerConformance):
    plugin = "ria"


def scores(weight, inputs, exponent):
    """The formula, element by element, in float64."""
    weight, inputs = weight.double().abs(), inputs.double()
    found = torch.empty_like(weight)
    for i, row in enumerate(weight):
        for j, value in enumerate(row):
            relative = value / row.sum() + value / weight[:, j].sum()
            found[i, j] = relative * inputs[:, j].square().sum().sqrt() ** exponent
    return found


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
def test_the_smallest_of_the_layer_go(exponent):
    torch.manual_seed(0)
    layer, inputs = nn.Linear(8, 6), torch.randn(40, 8) * torch.arange(1, 9)
    expected = scores(layer.weight.detach(), inputs, exponent)
    entry = {"sparsity": 0.5, "op_types": ["Linear"]}
    pruner = RIAPruner(layer, [entry], batches=[inputs], exponent=exponent)
    pruner.compress()
    gone = layer.weight == 0
    assert int(gone.sum()) == 24
    assert expected[gone].max() < expected[~gone].min()


def test_two_of_four_stay():
    torch.manual_seed(0)
    layer, inputs = nn.Linear(8, 6), torch.randn(40, 8)
    expected = scores(layer.weight.detach(), inputs, 0.5)
    pruner = RIAPruner(layer, [{"op_types": ["Linear"]}], batches=[inputs], pattern="2:4")
    pruner.compress()
    largest = expected.view(6, 2, 4).topk(2).indices.sort().values
    kept = (layer.weight != 0).view(6, 2, 4).nonzero()[:, 2].view(6, 2, 2)
    assert torch.equal(kept, largest)


def test_rows_and_columns_of_zeros_are_no_nan():
    layer = nn.Linear(4, 4)
    layer.weight.data[0] = 0
    layer.weight.data[:, 0] = 0
    entry = {"sparsity": 0.25, "op_types": ["Linear"]}
    RIAPruner(layer, [entry], batches=[torch.randn(3, 4)]).compress()
    assert int((layer.weight == 0).sum()) == 7
