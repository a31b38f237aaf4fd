"""What a filter is: zeroing one makes exactly that output channel constant, and no other."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from engine.pruning import Channels

CONVOLUTIONS = [nn.Conv1d, nn.Conv2d, nn.Conv3d]
TRANSPOSED = [nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d]


def outputs(layer: nn.Module) -> torch.Tensor:
    """The layer's outputs for random inputs, as (channels, samples)."""
    if isinstance(layer, (*CONVOLUTIONS, *TRANSPOSED)):
        dims = layer.weight.dim() - 2
        return layer(torch.randn(4, layer.in_channels, *[5] * dims)).transpose(0, 1).flatten(1)
    if isinstance(layer, nn.Linear):
        return layer(torch.randn(9, layer.in_features)).t()
    if isinstance(layer, nn.Bilinear):
        return layer(torch.randn(9, layer.in1_features), torch.randn(9, layer.in2_features)).t()
    if isinstance(layer, nn.EmbeddingBag):
        return layer(torch.randint(layer.num_embeddings, (9, 3))).t()
    if isinstance(layer, nn.Embedding):
        return layer(torch.arange(layer.num_embeddings)).t()
    if isinstance(layer, (nn.LayerNorm, nn.RMSNorm)):
        return layer(torch.randn(9, *layer.normalized_shape)).flatten(1).t()
    channels = layer.weight.shape[0]
    return layer(torch.randn(9, channels, 4, 4)).transpose(0, 1).flatten(1)


def check(layer: nn.Module) -> None:
    channels = Channels(layer)
    assert channels.count == len(outputs(layer))
    weight = layer.weight.detach().clone()
    rows = channels.rows(weight)
    assert rows.shape == (channels.count, weight.numel() // channels.count)
    for index in range(channels.count):
        kept = torch.ones(channels.count, dtype=torch.bool)
        kept[index] = False
        mask = channels.spread(kept)
        assert mask.shape == weight.shape
        with torch.no_grad():
            layer.weight.copy_(weight * mask)
        spread = outputs(layer).std(dim=1)
        assert (spread < 1e-6).nonzero().flatten().tolist() == [index]
        # rows and spread mean the same: the zeroed elements are row `index`.
        assert torch.equal(channels.rows(weight)[index].sort().values, weight[~mask].sort().values)


@settings(deadline=None, max_examples=40)
@given(
    kind=st.sampled_from([*CONVOLUTIONS, *TRANSPOSED]),
    groups=st.integers(1, 3),
    inputs=st.integers(1, 2),
    out=st.integers(1, 3),
    kernel=st.integers(1, 2),
)
def test_convolutions_grouped_and_depthwise(kind, groups, inputs, out, kernel):
    torch.manual_seed(0)
    check(kind(inputs * groups, out * groups, kernel, groups=groups))


@pytest.mark.parametrize(
    "layer",
    [
        lambda: nn.Linear(5, 4),
        lambda: nn.Bilinear(3, 2, 4),
        lambda: nn.Embedding(7, 4),
        lambda: nn.EmbeddingBag(7, 4),
        lambda: nn.BatchNorm2d(4),
        lambda: nn.InstanceNorm2d(4, affine=True),
        lambda: nn.GroupNorm(2, 4),
        lambda: nn.LayerNorm(5),
        lambda: nn.LayerNorm((3, 2)),
        lambda: nn.RMSNorm(5),
    ],
)
def test_other_layers(layer):
    check(layer())


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv1d(2, 3, 1), (4, 2, 6)),
        (nn.Conv1d(2, 3, 1), (2, 6)),
        (nn.Conv2d(2, 3, 1), (4, 2, 5, 6)),
        (nn.Conv2d(2, 3, 1), (2, 5, 6)),
        (nn.ConvTranspose3d(2, 3, 1), (2, 4, 5, 6)),
        (nn.Linear(2, 3), (2,)),
        (nn.Linear(2, 3), (4, 5, 2)),
        (nn.BatchNorm1d(3), (5, 3)),
        (nn.BatchNorm1d(3), (5, 3, 4)),
        (nn.InstanceNorm1d(3, affine=True), (3, 4)),
        (nn.GroupNorm(1, 3), (5, 3, 2, 2)),
        (nn.LayerNorm(3), (4, 5, 3)),
        (nn.LayerNorm((3, 2)), (5, 3, 2)),
        (nn.PReLU(), (5, 3, 2)),
        (nn.PReLU(3), (5, 3, 2)),
    ],
    ids=str,
)
def test_an_output_is_seen_by_channel_with_or_without_a_batch(layer, shape):
    # Give channel c the value c, however the layer lays its channels out.
    output = layer(torch.randn(shape))
    channels = Channels(layer)
    assert channels.of_output(output).shape == (channels.count, output.numel() // channels.count)
    with torch.no_grad():
        if layer.weight.numel() == channels.count and not isinstance(layer, nn.PReLU):
            layer.weight.zero_()
            layer.bias.copy_(torch.arange(float(channels.count)).view_as(layer.bias))
        elif not isinstance(layer, nn.PReLU):
            layer.weight.zero_()
            layer.bias.copy_(torch.arange(float(channels.count)))
    if not isinstance(layer, nn.PReLU):
        seen = channels.of_output(layer(torch.randn(shape)))
        assert torch.equal(seen, torch.arange(float(channels.count))[:, None].expand_as(seen))


def test_a_subclass_of_a_convolution_is_laid_out_like_it():
    class ConvBlock(nn.Conv2d):
        pass

    layer = ConvBlock(2, 3, 1)
    assert Channels(layer).of_output(torch.randn(3, 5, 6)).shape == (3, 30)


def test_a_layer_of_unknown_layout_is_refused_by_name():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

    with pytest.raises(TypeError, match="Odd has no filters that can be ranked"):
        Channels(Odd())
