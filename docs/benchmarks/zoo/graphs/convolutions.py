"""Grouped, depthwise, transposed and dilated convolutions in one, two and three dimensions."""

import torch
from torch import nn
from torch.nn import functional as F

from graphs.registry import N, graph, real

IMAGE = real(N, 3, 9, 9)


@graph(IMAGE)
class ResNeXt(nn.Module):
    """Grouped bottleneck with a residual."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 3, padding=1)
        self.a, self.b = nn.Conv2d(24, 32, 1), nn.Conv2d(32, 32, 3, padding=1, groups=8)
        self.c, self.norm, self.head = nn.Conv2d(32, 24, 1), nn.BatchNorm2d(32), nn.Linear(24, 4)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = F.relu(x + self.c(F.relu(self.norm(self.b(F.relu(self.a(x)))))))
        return self.head(x.mean((2, 3)))


@graph(IMAGE)
def MobileNet():
    layers, width = [nn.Conv2d(3, 12, 3, 2, 1), nn.BatchNorm2d(12), nn.ReLU6()], 12
    for out in (20, 28):
        layers += [
            nn.Conv2d(width, width, 3, 1, 1, groups=width, bias=False), nn.BatchNorm2d(width),
            nn.ReLU6(), nn.Conv2d(width, out, 1, bias=False), nn.BatchNorm2d(out), nn.Hardswish(),
        ]  # fmt: skip
        width = out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4))


@graph(IMAGE)
class DepthMultiplier(nn.Module):
    """A depthwise convolution that makes three channels of each."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 10, 3), nn.Conv2d(10, 30, 3, groups=10)
        self.c, self.head = nn.Conv2d(30, 20, 1), nn.Linear(20, 4)

    def forward(self, x):
        return self.head(F.relu(self.c(F.relu(self.b(F.relu(self.a(x)))))).mean((2, 3)))


@graph(IMAGE)
class GroupedFromInput(nn.Module):
    """Groups over the model's own input, whose channels are fixed, and groups of uneven use."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 18, 3, groups=3), nn.Conv2d(18, 27, 3, groups=9)
        self.c, self.head = nn.Conv2d(27, 18, 1, groups=3), nn.Linear(18, 4)

    def forward(self, x):
        return self.head(F.relu(self.c(F.relu(self.b(F.relu(self.a(x)))))).mean((2, 3)))


@graph(IMAGE)
class TransposedGrouped(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.up = nn.Conv2d(3, 16, 3, 2), nn.ConvTranspose2d(16, 12, 4, 2, groups=4)
        self.deep = nn.ConvTranspose2d(12, 12, 3, 2, 1, groups=12)
        self.norm, self.out = nn.BatchNorm2d(12), nn.Conv2d(12, 2, 1)

    def forward(self, x):
        x = F.leaky_relu(self.up(F.leaky_relu(self.a(x))), 0.1)
        return self.out(F.relu(self.norm(self.deep(x))))


@graph(IMAGE)
def Autoencoder():
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, 2, 1), nn.ReLU(), nn.Conv2d(12, 20, 3, 2, 1), nn.ReLU(),
        nn.ConvTranspose2d(20, 12, 3, 2, 1), nn.BatchNorm2d(12), nn.ReLU(),
        nn.ConvTranspose2d(12, 3, 3, 2, 1), nn.Sigmoid(),
    )  # fmt: skip


@graph(real(N, 1, 40))
class WaveNet(nn.Module):
    """Causal dilated convolutions with tanh and sigmoid gates, residual and skip sums."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv1d(1, 12, 1)
        self.gates = nn.ModuleList(nn.Conv1d(12, 24, 2, dilation=2**i) for i in range(3))
        self.back = nn.ModuleList(nn.Conv1d(12, 12, 1) for _ in range(3))
        self.skip = nn.ModuleList(nn.Conv1d(12, 16, 1) for _ in range(3))
        self.out = nn.Conv1d(16, 8, 1)

    def forward(self, x):
        x, total = self.stem(x), 0
        for i, (gate, back, skip) in enumerate(zip(self.gates, self.back, self.skip, strict=True)):
            a, b = gate(F.pad(x, (2**i, 0))).chunk(2, 1)
            z = torch.tanh(a) * torch.sigmoid(b)
            x, total = x + back(z), total + skip(z)
        return self.out(F.relu(total))


@graph(real(N, 2, 5, 8, 8))
class Video(nn.Module):
    """(2 + 1)-dimensional convolutions, pooling in three dimensions, grouped and depthwise."""

    def __init__(self):
        super().__init__()
        self.space, self.time = nn.Conv3d(2, 14, (1, 3, 3)), nn.Conv3d(14, 16, (3, 1, 1))
        self.norm, self.depth = nn.BatchNorm3d(16), nn.Conv3d(16, 16, 3, padding=1, groups=16)
        self.grouped, self.up = nn.Conv3d(16, 16, 1, groups=2), nn.ConvTranspose3d(16, 10, 2, 2)
        self.head = nn.Linear(10, 4)

    def forward(self, x):
        x = F.relu(self.norm(self.time(F.relu(self.space(x)))))
        x = F.max_pool3d(F.relu(self.depth(x)), (1, 2, 2))
        x = F.relu(self.up(F.relu(self.grouped(x))))
        return self.head(F.adaptive_avg_pool3d(x, 1).flatten(1))


@graph(real(N, 2, 30))
class Audio(nn.Module):
    """Strided, dilated, transposed and circularly padded convolutions in one dimension."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv1d(2, 16, 5, stride=2, padding=2, padding_mode="circular")
        self.b = nn.Conv1d(16, 20, 3, dilation=2, padding="same", padding_mode="reflect")
        self.c, self.norm = (
            nn.ConvTranspose1d(20, 12, 4, 2, 1, output_padding=1),
            nn.BatchNorm1d(12),
        )
        self.d = nn.Conv1d(12, 2, 3, padding=1, padding_mode="replicate")

    def forward(self, x):
        return self.d(F.elu(self.norm(self.c(F.relu(self.b(F.relu(self.a(x))))))))


@graph(IMAGE)
class LargeSeparable(nn.Module):
    """Rows and columns apart, dilated in parallel (ASPP), pooled features broadcast back."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.row, self.column = (
            nn.Conv2d(16, 16, (1, 5), 1, (0, 2)),
            nn.Conv2d(16, 16, (5, 1), 1, (2, 0)),
        )
        self.rates = nn.ModuleList(
            nn.Conv2d(16, 9, 3, padding=r, dilation=r, bias=False) for r in (1, 2, 3)
        )
        self.pooled, self.project = nn.Conv2d(16, 9, 1), nn.Conv2d(36, 16, 1)
        self.out = nn.Conv2d(16, 3, 1)

    def forward(self, x):
        x = F.relu(self.column(self.row(F.relu(self.stem(x)))))
        pooled = self.pooled(F.adaptive_avg_pool2d(x, 1)).expand(-1, -1, *x.shape[2:])
        x = torch.cat([*(rate(x) for rate in self.rates), pooled], 1)
        return self.out(F.relu(self.project(x)))


@graph(real(3, 9, 9))
class Unbatched(nn.Module):
    """Convolutions on an image without a batch dimension."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 24, 3)
        self.head = nn.Linear(24, 4)

    def forward(self, x):
        return self.head(F.relu(self.b(F.relu(self.a(x)))).mean((1, 2)))
