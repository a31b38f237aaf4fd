"""Channel shuffle, pixel shuffle, space to depth, fold and unfold."""

import torch
from torch import nn
from torch.nn import functional as F

from graphs.registry import N, graph, real

IMAGE = real(N, 3, 8, 8)


@graph(IMAGE)
class ShuffleViews(nn.Module):
    """Channel shuffle by view and transpose, between grouped convolutions."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 24, 3, padding=1, groups=4)
        self.c, self.head = nn.Conv2d(24, 16, 1, groups=4), nn.Linear(16, 4)

    def forward(self, x):
        x = F.relu(self.b(F.relu(self.a(x))))
        n, c, h, w = x.size()
        x = x.view(n, 4, c // 4, h, w).transpose(1, 2).contiguous().view(n, -1, h, w)
        return self.head(F.relu(self.c(x)).mean((2, 3)))


@graph(IMAGE)
def ShuffleModule():
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.ChannelShuffle(2),
        nn.Conv2d(16, 16, 3, groups=2), nn.ReLU(), nn.ChannelShuffle(4),
        nn.Conv2d(16, 24, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 4),
    )  # fmt: skip


@graph(IMAGE)
class ShuffleNetUnit(nn.Module):
    """Split in halves, one half through depthwise layers, concatenate, shuffle; twice."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 3, padding=1)
        self.units = nn.ModuleList(
            nn.Sequential(nn.Conv2d(12, 12, 1), nn.BatchNorm2d(12), nn.ReLU(),
                          nn.Conv2d(12, 12, 3, 1, 1, groups=12), nn.BatchNorm2d(12),
                          nn.Conv2d(12, 12, 1), nn.ReLU())
            for _ in range(2)
        )  # fmt: skip
        self.last, self.head = nn.Conv2d(24, 40, 1), nn.Linear(40, 4)

    def forward(self, x):
        x = F.relu(self.stem(x))
        for unit in self.units:
            a, b = x.chunk(2, dim=1)
            x = F.channel_shuffle(torch.cat([a, unit(b)], 1), 2)
        return self.head(F.relu(self.last(x)).mean((2, 3)))


@graph(IMAGE)
class SuperResolution(nn.Module):
    """Pixel shuffle as the output, so that only the inside can be smaller."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 24, 3, padding=1), nn.Conv2d(24, 24, 3, padding=1)
        self.c, self.shuffle = nn.Conv2d(24, 12, 3, padding=1), nn.PixelShuffle(2)

    def forward(self, x):
        return self.shuffle(self.c(torch.tanh(self.b(torch.tanh(self.a(x))))))


@graph(IMAGE)
def PixelShuffleInside():
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.PixelShuffle(2), nn.ReLU(), nn.Conv2d(8, 12, 3),
        nn.ReLU(), nn.PixelUnshuffle(2), nn.Conv2d(48, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(16, 4),
    )  # fmt: skip


@graph(IMAGE)
class SpaceToDepth(nn.Module):
    """The Focus layer of YOLO: strided slices, concatenated; and its inverse by hand."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(48, 32, 3, padding=1)
        self.c, self.head = nn.Conv2d(8, 16, 3), nn.Linear(16, 4)

    def forward(self, x):
        x = F.relu(self.a(x))
        x = torch.cat(
            [x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1
        )
        x = F.relu(self.b(x))
        n, c, h, w = x.shape
        x = (
            x.reshape(n, c // 4, 2, 2, h, w)
            .permute(0, 1, 4, 2, 5, 3)
            .reshape(n, c // 4, 2 * h, 2 * w)
        )
        return self.head(F.relu(self.c(x)).mean((2, 3)))


@graph(IMAGE)
class UnfoldConvolution(nn.Module):
    """A convolution written as unfold and a matrix product, and fold back."""

    def __init__(self):
        super().__init__()
        self.a, self.unfold = nn.Conv2d(3, 10, 1), nn.Unfold(3, padding=1)
        self.mix, self.fold = nn.Linear(90, 40), nn.Fold((8, 8), 2, stride=2)
        self.head = nn.Conv2d(10, 3, 1)

    def forward(self, x):
        x = self.unfold(F.relu(self.a(x)))
        x = F.relu(self.mix(x.transpose(1, 2)))
        x = x.transpose(1, 2)[:, :, ::4]
        return self.head(self.fold(x))


@graph(real(N, 6, 12))
class Shuffle1d(nn.Module):
    """Channel shuffle in one dimension with sizes from an attribute."""

    def __init__(self):
        super().__init__()
        self.groups, self.width = 3, 18
        self.a, self.b = nn.Conv1d(6, 18, 3), nn.Conv1d(18, 18, 3, groups=3)
        self.head = nn.Linear(18, 4)

    def forward(self, x):
        x = F.relu(self.a(x))
        x = x.view(x.size(0), self.groups, self.width // self.groups, x.size(2))
        x = x.transpose(1, 2).reshape(x.size(0), self.width, -1)
        return self.head(F.relu(self.b(x)).amax(-1))
