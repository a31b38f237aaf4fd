"""N:M patterns over any pruner of single weights."""

import pytest
import torch
from models import ConvNet, train_step
from torch import nn

import engine
from engine.plugins import registry

NM = registry.find("n_m", registry.EXTENSIONS).load()


def pruned(model, compressor="level", pattern="2:4", **entry):
    entry = {"sparsity": 0.5, "op_types": ["default"], **entry}
    config = {
        "compressor": compressor,
        "config_list": [entry],
        "extensions": [{"n_m": {"pattern": pattern}}],
    }
    pruner = engine.create_compressor(model, config)
    pruner.compress()
    return pruner


@pytest.mark.parametrize(("pattern", "sparsity"), [("2:4", 0.5), ("4:8", 0.5), ("1:4", 0.75)])
def test_of_each_m_the_n_largest_are_left(pattern, sparsity):
    """What the pruner keeps comes first; among that, and among the rest, magnitude decides."""
    torch.manual_seed(0)
    model = nn.Linear(16, 12)
    before = model.weight.detach().clone()
    pruned(model, pattern=pattern, sparsity=sparsity)
    kept, of = map(int, pattern.split(":"))
    pieces = before.abs().view(12, -1, of)
    largest = torch.zeros_like(pieces).scatter_(-1, pieces.topk(kept, -1).indices, 1.0)
    mask = (model.weight != 0).float().view(12, -1, of)
    assert torch.equal(mask.sum(-1), torch.full_like(mask.sum(-1), kept))
    assert torch.equal(mask, largest)


def test_input_channels_of_a_convolution_lie_together():
    torch.manual_seed(0)
    model = nn.Conv2d(8, 4, 3)
    pruned(model)
    pieces = (model.weight != 0).float().permute(0, 2, 3, 1).reshape(-1, 2, 4)
    assert bool((pieces.sum(-1) == 2).all())


def test_a_schedule_gets_the_pattern_when_it_is_there():
    model = nn.Linear(16, 8)
    entry = {
        "initial_sparsity": 0.25,
        "final_sparsity": 0.5,
        "end_epoch": 2,
        "op_types": ["Linear"],
    }
    config = {"compressor": "agp", "config_list": [entry], "extensions": ["n_m"]}
    pruner = engine.create_compressor(model, config)
    pruner.compress()
    assert int((model.weight == 0).sum()) == 32  # a quarter, anywhere
    pruner.update_epoch(2)
    pruner.update_masks()
    mask = pruner.wrappers[0].weight_mask.view(8, 4, 4)
    assert bool((mask.sum(-1) == 2).all())
    assert not model.weight.view(8, 4, 4)[mask == 0].any()


def test_more_than_the_pattern_removes_is_removed():
    model = nn.Linear(16, 8)
    pruned(model, sparsity=0.75)
    pieces = (model.weight != 0).float().view(8, 4, 4)
    assert float(pieces.sum(-1).max()) <= 2
    assert float(pieces.mean()) <= 0.26


def test_whole_filters_stay_removed_and_it_trains_on():
    model = ConvNet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    pruner = pruned(model, "l1_filter", op_types=["Conv2d"])
    gone = model.conv2.weight.detach().flatten(1).abs().sum(1) == 0
    assert int(gone.sum()) == 5
    for _ in range(2):
        train_step(model, optimizer, torch.randn(4, 1, 8, 8))
    mask = pruner.wrappers[1].weight_mask
    assert not model.conv2.weight[mask == 0].any()
    assert bool((model.conv2.weight.flatten(1).abs().sum(1)[gone] == 0).all())


def test_a_pattern_that_is_none_is_refused():
    with pytest.raises(engine.ConfigError, match="N:M, such as 2:4"):
        pruned(nn.Linear(8, 8), pattern="two of four")
