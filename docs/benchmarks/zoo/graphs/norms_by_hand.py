"""Norms that models write themselves, and weights that are standardized."""

import torch
from torch import nn
from torch.nn import functional as F

from graphs.registry import N, graph, real

IMAGE = real(N, 3, 9, 9)


class ChannelLayerNorm(nn.Module):
    """Layer norm over the channels of an image, as ConvNeXt writes it."""

    def __init__(self, c):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(c)), nn.Parameter(torch.randn(c))

    def forward(self, x):
        mean = x.mean(1, keepdim=True)
        var = (x - mean).pow(2).mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt(var + 1e-6)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class RootMeanSquare(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.scale = nn.Parameter(torch.randn(c))

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.scale


class StandardizedConv(nn.Conv2d):
    """Weight standardization: each filter has mean zero and variance one."""

    def forward(self, x):
        mean = self.weight.mean(dim=[1, 2, 3], keepdim=True)
        std = self.weight.std(dim=[1, 2, 3], keepdim=True) + 1e-5
        return self._conv_forward(x, (self.weight - mean) / std, self.bias)


class ScaledStandardConv(nn.Conv2d):
    """NFNet: standardized through batch_norm over the flattened filters, with a gain."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.gain = nn.Parameter(torch.randn(self.out_channels, 1, 1, 1))
        self.scale = self.weight[0].numel() ** -0.5

    def forward(self, x):
        weight = F.batch_norm(
            self.weight.reshape(1, self.out_channels, -1), None, None,
            weight=(self.gain * self.scale).view(-1), training=True, momentum=0.0,
        ).reshape_as(self.weight)  # fmt: skip
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


def head(width):
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4)]


@graph(IMAGE)
class ConvNeXtBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm0 = nn.Conv2d(3, 16, 3, 3), ChannelLayerNorm(16)
        self.depth, self.norm = nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.LayerNorm(16)
        self.up, self.down = nn.Linear(16, 64), nn.Linear(64, 16)
        self.gamma, self.head = nn.Parameter(torch.randn(16)), nn.Linear(16, 4)

    def forward(self, x):
        x = self.norm0(self.stem(x))
        y = self.norm(self.depth(x).permute(0, 2, 3, 1))
        y = self.gamma * self.down(F.gelu(self.up(y)))
        return self.head((x + y.permute(0, 3, 1, 2)).mean((-2, -1)))


@graph(IMAGE)
def HandLayerNorm():
    return nn.Sequential(
        nn.Conv2d(3, 24, 3), ChannelLayerNorm(24), nn.ReLU(), nn.Conv2d(24, 24, 3), *head(24)
    )


@graph(real(N, 5, 12))
def HandRMSNorm():
    return nn.Sequential(
        nn.Linear(12, 32), RootMeanSquare(32), nn.SiLU(), nn.Linear(32, 32), nn.ReLU(),
        nn.Linear(32, 4),
    )  # fmt: skip


@graph(IMAGE)
def WeightStandardization():
    return nn.Sequential(
        StandardizedConv(3, 16, 3), nn.ReLU(), StandardizedConv(16, 24, 3), nn.GroupNorm(4, 24),
        nn.ReLU(), nn.Conv2d(24, 24, 1), nn.ReLU(), *head(24),
    )  # fmt: skip


@graph(IMAGE, shortfall="weights are standardized over their inputs")
def NormalizerFree():
    return nn.Sequential(
        ScaledStandardConv(3, 16, 3), nn.GELU(), ScaledStandardConv(16, 24, 3, groups=2), nn.GELU(),
        nn.Conv2d(24, 32, 1), nn.GELU(), *head(32),
    )  # fmt: skip


@graph(IMAGE, shortfall="a mean over the channels in the model's own code divides by their number")
class GlobalResponseNorm(nn.Module):
    """ConvNeXt V2: features divided by the mean of their norms over the channels."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 32, 3), nn.Conv2d(32, 16, 1), nn.Linear(16, 4)
        self.gamma, self.beta = (nn.Parameter(torch.randn(1, 32, 1, 1)) for _ in range(2))

    def forward(self, x):
        x = F.gelu(self.a(x))
        norm = x.norm(p=2, dim=(2, 3), keepdim=True)
        x = x + self.gamma * (x * norm / (norm.mean(1, keepdim=True) + 1e-6)) + self.beta
        return self.head(F.relu(self.b(x)).mean((2, 3)))


@graph(real(N, 12))
class UnitLength(nn.Module):
    """Features of unit length against class vectors of unit length (cosine classifier)."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(12, 24), nn.Linear(24, 32)
        self.classes = nn.Parameter(torch.randn(5, 32))

    def forward(self, x):
        x = F.normalize(self.b(F.relu(self.a(x))), dim=-1)
        return 10 * x @ F.normalize(self.classes, dim=1).t()


@graph(IMAGE)
class UserBuffers(nn.Module):
    """Normalization constants that the user registered as buffers, per channel."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 24, 3), nn.Conv2d(24, 24, 3), nn.Linear(24, 4)
        self.register_buffer("mean", torch.randn(24))
        self.register_buffer("std", torch.rand(24) + 0.5)

    def forward(self, x):
        x = (self.a(x) - self.mean.view(1, -1, 1, 1)) / self.std.view(1, -1, 1, 1)
        return self.head(F.relu(self.b(F.relu(x))).mean((2, 3)))
