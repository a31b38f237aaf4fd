"""Channels that become pixels, places that are chosen, and memory formats that stay."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from engine.algorithms import L1FilterPruner
from engine.speedup import speedup


def silenced(model: nn.Module, name: str, filters: list[int]) -> nn.Module:
    layer = model.get_submodule(name)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter[filters] = 0
    return model.double().eval()


def smaller(model: nn.Module, x: Tensor) -> nn.Module:
    """Return the model made smaller, its outputs being those of before."""
    x = x.double()
    expected = model(x)
    speedup(model, x)
    torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-12)
    return model


def upscaling() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 18, 3), nn.PixelShuffle(3), nn.Conv2d(2, 5, 3))


@pytest.mark.parametrize(
    ("gone", "left"),
    [
        (list(range(9)), 9),  # all nine filters of a pixel's channel
        ([*range(8), 9], 18),  # eight of one and one of the other: no channel is whole
    ],
)
def test_filters_go_where_all_pixels_of_a_channel_do(gone: list[int], left: int) -> None:
    model = smaller(silenced(upscaling(), "0", gone), torch.randn(2, 3, 6, 6))
    assert model[0].out_channels == left
    assert model[2].in_channels == left // 9


def test_a_channel_goes_with_all_that_is_made_of_its_pixels() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.PixelUnshuffle(2), nn.Conv2d(16, 5, 1))
    model = smaller(silenced(model, "0", [1, 2]), torch.randn(2, 3, 8, 8))
    assert (model[0].out_channels, model[3].in_channels) == (2, 8)


def test_filters_that_make_one_channel_are_ranked_together() -> None:
    torch.manual_seed(0)
    model, x = upscaling(), torch.randn(2, 3, 6, 6)
    entry = [{"op_names": ["0"], "sparsity": 0.5}]
    pruner = L1FilterPruner(model, entry, dependency_aware=True, dummy_input=x)
    pruner.compress()
    kept = (pruner.get_modules_wrapper()[0].weight_mask.flatten(1) != 0).any(dim=1).view(2, 9)
    assert kept.all(dim=1).tolist() in ([True, False], [False, True])
    assert pruner.apply_speedup()[0].out_channels == 9


class Chosen(nn.Module):
    """The best places of all, by a score; ``each`` chooses for each channel by itself."""

    def __init__(self, each: bool) -> None:
        super().__init__()
        self.a, self.score, self.h = nn.Conv1d(3, 8, 3), nn.Conv1d(3, 1, 3), nn.Conv1d(8, 2, 1)
        self.each = each

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.a(x))
        if self.each:
            return self.h(y.topk(4, dim=2).values + y.sort(dim=-1)[0][:, :, -4:])
        best = self.score(x).topk(4, dim=2).indices
        return self.h(y.gather(2, best.expand(-1, y.shape[1], -1)))


@pytest.mark.parametrize("each", [False, True])
def test_channels_go_where_places_are_chosen(each: bool) -> None:
    model = smaller(silenced(Chosen(each), "a", [0, 3, 5]), torch.randn(2, 3, 12))
    assert (model.a.out_channels, model.h.in_channels) == (5, 5)


class ByChannel(Chosen):
    """Each channel's places depend on the channel: all of them stay."""

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.a(x))
        places = torch.arange(8)[None, :, None].expand(len(y), 8, 4) % y.shape[2]
        return self.h(y.gather(2, places))


def test_channels_stay_where_their_number_chooses_the_place() -> None:
    model = smaller(silenced(ByChannel(False), "a", [0, 3]), torch.randn(2, 3, 12))
    assert model.a.out_channels == 8


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_depthwise_transposed_convolutions_lose_the_channels_of_those_before(dims: int) -> None:
    conv = getattr(nn, f"Conv{dims}d")
    transposed = getattr(nn, f"ConvTranspose{dims}d")(8, 8, 4, 2, 1, groups=8)
    model = nn.Sequential(conv(3, 8, 3), nn.ReLU(), transposed, nn.ReLU(), conv(8, 2, 1))
    with torch.no_grad():
        transposed.bias[[1, 2, 6]] = 0
    x = torch.randn(2, 3, *[6] * dims)
    model = smaller(silenced(model, "0", [1, 2, 6]), x)
    assert (model[0].out_channels, model[2].groups, model[4].in_channels) == (5, 5, 5)


def test_channels_last_stays_with_gradients_and_the_optimizers_state() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
    model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    x = torch.randn(2, 3, 8, 8)
    pruner = L1FilterPruner(model, [{"op_names": ["0"], "sparsity": 0.5}], optimizer)
    pruner.compress()
    model(x).square().mean().backward()
    optimizer.step()
    pruner.apply_speedup(x)
    weight = model[2].weight
    assert weight.shape[1] < 8
    for tensor in (weight, weight.grad, optimizer.state[weight]["momentum_buffer"]):
        assert tensor.is_contiguous(memory_format=torch.channels_last)
        assert not tensor.is_contiguous()


class Transposed(nn.Module):
    """A layer that holds its weight as (inputs, outputs) and says so, as GPT-2's Conv1D does."""

    output_channel_axis = 1

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.nf = outputs
        self.weight = nn.Parameter(torch.randn(inputs, outputs))
        self.bias = nn.Parameter(torch.randn(outputs))

    def forward(self, x: Tensor) -> Tensor:
        size = (*x.size()[:-1], self.nf)
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(size)


def test_filters_along_columns_are_ranked_and_go() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 10), Transposed(10, 16), nn.ReLU(), Transposed(16, 3)).eval()
    with torch.no_grad():
        model[1].weight[:, ::2] *= 0.01
    x = torch.randn(4, 6)
    entries = [{"op_names": ["1"], "sparsity": 0.5}]
    pruner = L1FilterPruner(model, entries, dependency_aware=True, dummy_input=x)
    kept = model[1].weight[:, 1::2].detach().clone()
    pruner.compress()
    masked = model(x)
    small = pruner.apply_speedup()
    torch.testing.assert_close(small(x), masked)
    torch.testing.assert_close(small[1].weight.detach(), kept)
    assert (small[1].nf, small[3].weight.shape) == (8, (8, 3))
