"""Concatenation, split and chunk, even and uneven."""

import torch
from torch import nn
from torch.nn import functional as F

from graphs.registry import N, graph, real

IMAGE = real(N, 3, 9, 9)


@graph(IMAGE)
class DenseNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        widths = [12, 19, 26, 33]
        self.norms = nn.ModuleList(nn.BatchNorm2d(w) for w in widths)
        self.convs = nn.ModuleList(nn.Conv2d(w, 7, 3, padding=1) for w in widths[:-1])
        self.head = nn.Linear(33, 4)

    def forward(self, x):
        features = [self.stem(x)]
        for norm, conv in zip(self.norms, self.convs, strict=False):
            features.append(conv(F.relu(norm(torch.cat(features, 1)))))
        return self.head(F.relu(self.norms[-1](torch.cat(features, 1))).mean((2, 3)))


@graph(IMAGE)
class Inception(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b1, self.b2 = (
            nn.Conv2d(3, 10, 1),
            nn.Conv2d(3, 8, 1),
            nn.Conv2d(8, 14, 3, 1, 1),
        )
        self.c1, self.c2 = nn.Conv2d(3, 6, (1, 3), 1, (0, 1)), nn.Conv2d(6, 6, (3, 1), 1, (1, 0))
        self.d = nn.Conv2d(3, 5, 1)
        self.norm, self.last, self.head = nn.BatchNorm2d(35), nn.Conv2d(35, 20, 3), nn.Linear(20, 4)

    def forward(self, x):
        x = torch.cat([self.a(x), self.b2(F.relu(self.b1(x))), self.c2(self.c1(x)),
                       self.d(F.max_pool2d(x, 3, 1, 1))], dim=1)  # fmt: skip
        return self.head(F.relu(self.last(F.relu(self.norm(x)))).flatten(2).mean(2))


@graph(IMAGE)
class UNet(nn.Module):
    """Skips by concatenation, transposed convolutions, a map as the output."""

    def __init__(self):
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 20, 3, 2, 1)
        self.bottom, self.up = nn.Conv2d(20, 20, 3, padding=1), nn.ConvTranspose2d(20, 12, 3, 2, 1)
        self.join, self.out = nn.Conv2d(24, 10, 3, padding=1), nn.Conv2d(10, 2, 1)

    def forward(self, x):
        one = F.relu(self.down1(x))
        two = F.relu(self.bottom(F.relu(self.down2(one))))
        return self.out(F.relu(self.join(torch.cat((F.relu(self.up(two)), one), dim=-3))))


@graph(IMAGE)
class FeaturePyramid(nn.Module):
    """Lateral connections, nearest and bilinear upsampling, an output per level."""

    def __init__(self):
        super().__init__()
        self.stages = nn.ModuleList(
            [nn.Conv2d(3, 12, 3, 1, 1), nn.Conv2d(12, 18, 3, 2, 1), nn.Conv2d(18, 24, 3, 2, 1)]
        )
        self.lateral = nn.ModuleList(nn.Conv2d(c, 16, 1) for c in (12, 18, 24))
        self.smooth = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1) for _ in range(3))
        self.head = nn.Conv2d(16, 5, 1)

    def forward(self, x):
        levels = []
        for stage in self.stages:
            x = F.relu(stage(x))
            levels.append(x)
        top, out = None, []
        for lateral, smooth, level in zip(self.lateral, self.smooth, levels, strict=True):
            here = lateral(level)
            if top is not None:
                size = here.shape[-2:]
                here = here + F.interpolate(top, size, mode="bilinear", align_corners=False)
                here = here + F.interpolate(top, size=size, mode="nearest")
            top = smooth(here)
            out.append(self.head(F.relu(top)))
        return out


@graph(IMAGE)
class UnevenSplit(nn.Module):
    """torch.split with a list of sizes, each part with a layer of its own."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 24, 3, padding=1), nn.BatchNorm2d(24)
        self.a, self.b = nn.Conv2d(5, 16, 3, padding=1), nn.Conv2d(12, 16, 3, padding=1)
        self.c, self.head = nn.Conv2d(7, 16, 1), nn.Linear(16, 4)

    def forward(self, x):
        a, b, c = torch.split(F.relu(self.norm(self.conv(x))), [5, 12, 7], dim=1)
        return self.head(F.relu(self.a(a) + self.b(b) * self.c(c)).mean((2, 3)))


@graph(IMAGE)
class SplitAndRejoin(nn.Module):
    """CSP: split unevenly, work on one part, put them together in another order."""

    def __init__(self):
        super().__init__()
        self.conv, self.mid = nn.Conv2d(3, 21, 3, padding=1), nn.Conv2d(13, 13, 3, padding=1)
        self.last, self.head = nn.Conv2d(34, 16, 3), nn.Linear(16, 4)

    def forward(self, x):
        left, right = F.silu(self.conv(x)).split((8, 13), 1)
        x = torch.cat([self.mid(right), left, right], 1)
        return self.head(F.relu(self.last(x)).mean((2, 3)))


@graph(IMAGE)
class GhostChunks(nn.Module):
    """chunk() into equal parts used differently, and tensor_split into unequal ones."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 24, 3, padding=1)
        self.a, self.b, self.c = (nn.Conv2d(8, 14, 3, padding=1) for _ in range(3))
        self.d, self.e = nn.Conv2d(5, 9, 1), nn.Conv2d(5, 9, 1)
        self.f, self.head = nn.Conv2d(4, 9, 1), nn.Linear(9, 4)

    def forward(self, x):
        one, two, three = F.relu(self.conv(x)).chunk(3, dim=1)
        x = F.relu(self.a(one) + self.b(two) + self.c(three))
        d, e, f = torch.tensor_split(x, 3, dim=1)
        return self.head((self.d(d) + self.e(e) * self.f(f)).mean((2, 3)))


@graph(real(N, 12))
class StackedBranches(nn.Module):
    """torch.stack of branches, weighted by a softmax over the branches."""

    def __init__(self):
        super().__init__()
        self.branches = nn.ModuleList(nn.Linear(12, 20) for _ in range(3))
        self.weights = nn.Parameter(torch.randn(3))
        self.mix, self.head = nn.Linear(20, 30), nn.Linear(30, 4)

    def forward(self, x):
        x = torch.stack([F.relu(branch(x)) for branch in self.branches], dim=1)
        x = (x * self.weights.softmax(0)[:, None]).sum(1)
        return self.head(F.relu(self.mix(x)))


@graph(IMAGE)
class ZerosJoined(nn.Module):
    """Channels of zeros from ``new_zeros``, ``zeros`` and ``ones``, concatenated and added."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 20, 3, bias=False), nn.Conv2d(24, 24, 1, bias=False)
        self.norm, self.head = nn.GroupNorm(4, 24), nn.Conv2d(26, 4, 1)

    def forward(self, x):
        x = self.a(x)
        n, _, h, w = x.shape
        x = torch.cat([x, x.new_zeros(n, 4, h, w)], 1)
        x = F.relu(self.norm(self.b(x) + torch.zeros(n, 1, h, w, dtype=x.dtype)))
        return self.head(F.relu(torch.cat([x, torch.ones(n, 2, h, w, dtype=x.dtype)], 1)))
