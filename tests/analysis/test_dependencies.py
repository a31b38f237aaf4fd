"""Which layers are bound together: by hand on small models, and against what pruning shows."""

from __future__ import annotations

import pytest
import torch
from nets import Grouped, Residual
from torch import Tensor, nn
from torch.nn import functional as F

from engine import EngineError
from engine.analysis import ChannelDependency, GroupDependency, InputChannelDependency

X = torch.randn(1, 3, 9, 9)


class Branches(nn.Module):
    """A gate and a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 4, 1)
        self.gate = nn.Linear(8, 8)
        self.mix = nn.Conv2d(12, 6, 1)
        self.last = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.left(x)
        y = y * torch.sigmoid(self.gate(y.mean((2, 3))))[:, :, None, None]
        return self.last(F.relu(self.mix(torch.cat([y, self.right(x)], 1))))


def test_layers_that_are_added_or_multiplied_are_one_set() -> None:
    assert ChannelDependency(Residual(), X).dependency_sets == [{"stem", "b"}, {"a"}]
    sets = ChannelDependency(Branches(), X).dependency_sets
    assert sets == [{"left", "gate"}, {"right"}, {"mix"}]


def test_the_last_layer_is_in_no_set() -> None:
    sets = ChannelDependency(Residual(), X).dependency_sets
    assert not any("head" in names for names in sets)


def test_a_depthwise_convolution_is_bound_to_what_it_reads() -> None:
    sets = ChannelDependency(Grouped(), X).dependency_sets
    assert sets == [{"first"}, {"grouped", "depthwise"}]


def test_layers_that_read_the_same_channels_are_one_input_set() -> None:
    sets = InputChannelDependency(Residual(), X).dependency_sets
    assert sets == [{"a", "head"}, {"b"}]


def test_group_numbers_divide_every_count_that_can_be_left() -> None:
    groups = GroupDependency(Grouped(), X).dependency_sets
    # first feeds four groups, grouped has four itself; depthwise goes with grouped.
    assert groups == {"first": 4, "grouped": 4, "depthwise": 4, "last": 1}
    assert set(GroupDependency(Branches(), X).dependency_sets.values()) == {1}


def test_depthwise_convolutions_alone_constrain_nothing() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 2, 1))
    assert GroupDependency(model, X).dependency_sets == {"0": 1, "1": 1, "2": 1}


def test_csv_of_sets_and_groups(tmp_path) -> None:
    ChannelDependency(Residual(), X).export(tmp_path / "d.csv")
    assert (tmp_path / "d.csv").read_text().splitlines() == [
        "Dependency Set,Layers",
        "Set 1,stem,b",
        "Set 2,a",
    ]
    GroupDependency(Grouped(), X).export(tmp_path / "g.csv")
    assert (tmp_path / "g.csv").read_text().splitlines()[:3] == [
        "Conv Layer Name,Group",
        "first,4",
        "grouped,4",
    ]


def test_an_example_that_does_not_fit_is_an_error_that_shows_its_shape() -> None:
    with pytest.raises(EngineError, match=r"\(1, 4, 9, 9\)"):
        ChannelDependency(Residual(), torch.randn(1, 4, 9, 9))


def test_the_model_is_left_as_found() -> None:
    model = Residual().train()
    before = model.norm.running_mean.clone()
    ChannelDependency(model, X)
    assert model.training
    assert torch.equal(model.norm.running_mean, before)


@pytest.mark.parametrize("make", [Residual, Branches, Grouped])
def test_a_channel_of_every_layer_of_a_set_can_be_cut_out_together(make) -> None:
    """Zeros in one channel of all of a set leave some channel that nothing reads or makes."""
    from engine.speedup import speedup

    torch.manual_seed(0)
    for names in ChannelDependency(make(), X).dependency_sets:
        model = make().eval()
        modules = dict(model.named_modules())
        steps = GroupDependency(model, X).dependency_sets
        with torch.no_grad():
            for name in names:
                weight, bias = modules[name].weight, modules[name].bias
                # The first of each group.
                first = range(0, len(weight), len(weight) // steps.get(name, 1))
                weight[list(first)] = 0
                bias[list(first)] = 0
            if hasattr(model, "norm"):
                model.norm.bias.zero_()
                model.norm.running_mean.zero_()
        before = {name: len(modules[name].weight) for name in names}
        speedup(model, X)
        assert all(len(modules[name].weight) < before[name] for name in names), names
