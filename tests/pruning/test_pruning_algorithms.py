"""Each criterion against its paper's formula, computed here in float64, and NNI's ground truths."""

import math

import pytest
import torch
from models import zeros
from torch import nn

from engine.algorithms import FPGMPruner, L1FilterPruner, L2FilterPruner, LevelPruner
from engine.pruning import Channels

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def counted(filters: int, *shape: int) -> torch.Tensor:
    """Filters 1, 2, 3, ... times ones, as NNI's own tests have them."""
    return torch.arange(1.0, filters + 1).view(-1, *[1] * len(shape)).expand(filters, *shape)


def two_convolutions() -> nn.Sequential:
    model = nn.Sequential(nn.Conv2d(1, 5, 5), nn.BatchNorm2d(5), nn.Conv2d(5, 10, 5))
    with torch.no_grad():
        model[0].weight.copy_(counted(5, 1, 5, 5))
        model[2].weight.copy_(counted(10, 5, 5, 5))
    return model


def removed(wrapper) -> list[int]:
    alive = Channels(wrapper.module).rows(wrapper.weight_mask).bool().any(dim=1)
    return (~alive).nonzero().flatten().tolist()


def prune(cls, model, *entries):
    pruner = cls(model, list(entries))
    pruner.compress()
    return pruner.get_modules_wrapper()


@pytest.mark.parametrize("cls", [L1FilterPruner, L2FilterPruner])
def test_ground_truth_of_norms(cls):
    wrappers = prune(
        cls,
        two_convolutions(),
        {"sparsity": 0.2, "op_names": ["0"]},
        {"sparsity": 0.6, "op_names": ["2"]},
    )
    assert [removed(w) for w in wrappers] == [[0], [0, 1, 2, 3, 4, 5]]


@pytest.mark.parametrize(("sparsity", "expected"), [(0.2, [4, 5]), (0.6, [2, 3, 4, 5, 6, 7])])
def test_ground_truth_of_the_geometric_median(sparsity, expected):
    wrappers = prune(FPGMPruner, two_convolutions(), {"sparsity": sparsity, "op_names": ["2"]})
    assert removed(wrappers[0]) == expected


def layer_of(dtype: torch.dtype, transposed: bool) -> nn.Module:
    # An offset larger than the differences: the hard case for distances in low precision.
    layer = nn.ConvTranspose2d(6, 6, 3, groups=2) if transposed else nn.Conv2d(4, 14, 3)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(layer.weight.shape) + 2)
    return layer.to(dtype)


def float64_rows(layer: nn.Module) -> list[list[float]]:
    weight = layer.weight.detach().double()
    if not isinstance(layer, nn.ConvTranspose2d):
        return [weight[c].flatten().tolist() for c in range(len(weight))]
    inputs, outputs = layer.in_channels // layer.groups, layer.out_channels // layer.groups
    return [
        weight[group * inputs : (group + 1) * inputs, c].flatten().tolist()
        for group in range(layer.groups)
        for c in range(outputs)
    ]


SCORES = {
    L1FilterPruner: lambda rows: [sum(abs(v) for v in row) for row in rows],
    L2FilterPruner: lambda rows: [math.sqrt(sum(v * v for v in row)) for row in rows],
    FPGMPruner: lambda rows: [sum(math.dist(row, other) for other in rows) for row in rows],
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("cls", SCORES)
def test_the_filters_of_lowest_score_go(cls, transposed, dtype):
    layer = layer_of(dtype, transposed)
    scores = SCORES[cls](float64_rows(layer))
    lowest = sorted(range(len(scores)), key=lambda i: (scores[i], i))[: len(scores) // 2]
    wrappers = prune(cls, nn.Sequential(layer), {"sparsity": 0.5, "op_types": ["default"]})
    assert removed(wrappers[0]) == sorted(lowest)


@pytest.mark.parametrize("cls", SCORES)
def test_differences_that_only_float64_holds(cls):
    layer = nn.Linear(3, 5, bias=False).double()
    steps = torch.tensor([[9.0], [5.0], [3.0], [4.0], [4.5]], dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(1 + 1e-10 * steps)
    wrappers = prune(cls, nn.Sequential(layer), {"sparsity": 0.2, "op_types": ["Linear"]})
    assert removed(wrappers[0]) == ([4] if cls is FPGMPruner else [2])


def test_the_geometric_median_of_filters_far_from_zero():
    layer = nn.Linear(30, 40, bias=False)
    with torch.no_grad():
        layer.weight.copy_(100 + 0.01 * torch.randn(40, 30))
    scores = SCORES[FPGMPruner](float64_rows(layer))
    lowest = sorted(range(40), key=lambda i: scores[i])[:20]
    wrappers = prune(FPGMPruner, nn.Sequential(layer), {"sparsity": 0.5, "op_types": ["Linear"]})
    assert removed(wrappers[0]) == sorted(lowest)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_level_removes_the_smallest_magnitudes(dtype):
    layer = nn.Linear(9, 11).to(dtype)
    values = layer.weight.detach().double().abs().flatten().tolist()
    lowest = sorted(range(99), key=lambda i: (values[i], i))[:69]
    (wrapper,) = prune(LevelPruner, layer, {"sparsity": 0.7, "op_types": ["Linear"]})
    gone = (wrapper.weight_mask == 0).flatten().nonzero().flatten().tolist()
    assert gone == sorted(lowest)
    assert wrapper.bias_mask is None


def test_level_by_hand():
    layer = nn.Linear(3, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.5, -0.1, 0.3], [-0.2, 0.2, 4.0]]))
    (wrapper,) = prune(LevelPruner, layer, {"sparsity": 0.5, "op_types": ["Linear"]})
    assert wrapper.weight_mask.tolist() == [[1, 0, 1], [0, 0, 1]]


def test_nni_count_of_constant_layers_is_exact():
    layer = nn.Linear(10, 10)
    with torch.no_grad():
        layer.weight.fill_(3.0)
    prune(LevelPruner, layer, {"sparsity": 0.1, "op_types": ["Linear"]})
    assert zeros(layer.weight) == 10


def test_a_new_configuration_gives_a_new_mask():
    model = two_convolutions()
    pruner = FPGMPruner(model, [{"sparsity": 0.2, "op_names": ["2"]}])
    pruner.compress()
    (wrapper,) = pruner.get_modules_wrapper()
    wrapper.config = {**wrapper.config, "sparsity": 0.6}
    pruner.update_masks()
    assert len(removed(wrapper)) == 6
    assert {4, 5} <= set(removed(wrapper))


def test_removed_filters_are_no_neighbours_of_the_median_any_more():
    # On a line the median is the one in the middle: 3 and 4 tie, 3 comes first. Of 1, 2, 4, 5, 20
    # it is 4; counted as a filter at zero, the removed one would make it 2.
    layer = nn.Linear(1, 6, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0], [2.0], [3.0], [4.0], [5.0], [20.0]]))
    pruner = FPGMPruner(layer, [{"sparsity": 0.17, "op_types": ["Linear"]}])
    pruner.compress()
    (wrapper,) = pruner.get_modules_wrapper()
    assert removed(wrapper) == [2]
    wrapper.config = {**wrapper.config, "sparsity": 0.34}
    pruner.update_masks()
    assert removed(wrapper) == [2, 3]
