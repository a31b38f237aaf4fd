"""Residual adds, broadcasts, and the constants that they carry."""

import torch
from torch import nn
from torch.nn import functional as F

from graphs.registry import N, graph, real

IMAGE = real(N, 3, 9, 9)


class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.a, self.na = nn.Conv2d(c, c, 3, padding=1, bias=False), nn.BatchNorm2d(c)
        self.b, self.nb = nn.Conv2d(c, c, 3, padding=1, bias=False), nn.BatchNorm2d(c)

    def forward(self, x):
        return F.relu(x + self.nb(self.b(F.relu(self.na(self.a(x))))))


@graph(IMAGE)
def ResidualChain():
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), Block(16), Block(16),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5),
    )  # fmt: skip


@graph(IMAGE)
class ResidualDownsample(nn.Module):
    """A projection on the shortcut, and option-A shortcuts that pad channels with zeros."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.a, self.short = nn.Conv2d(12, 20, 3, stride=2, padding=1), nn.Conv2d(12, 20, 1, 2)
        self.b = nn.Conv2d(20, 28, 3, stride=2, padding=1)
        self.head = nn.Linear(28, 4)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = F.relu(self.a(x) + self.short(x))
        y = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))
        return self.head(F.relu(self.b(x) + y).mean((2, 3)))


@graph(IMAGE)
class PreActivation(nn.Module):
    """Norm and activation before each convolution: the sum itself is never normalized."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(16) for _ in range(4))
        self.convs = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1) for _ in range(3))
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        x = self.stem(x)
        for norm, conv in zip(self.norms, self.convs, strict=False):
            x = x + conv(F.relu(norm(x)))
        return self.head(F.relu(self.norms[-1](x)).mean((2, 3)))


@graph(IMAGE)
class Broadcasts(nn.Module):
    """Operands of lower rank, of size one, and from the left."""

    def __init__(self):
        super().__init__()
        self.conv, self.point = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 1, 1)
        self.scale = nn.Parameter(torch.randn(16, 1, 1))
        self.shift = nn.Parameter(torch.randn(1, 16, 1, 1))
        self.down, self.head = nn.Conv2d(16, 24, 3), nn.Linear(24, 4)

    def forward(self, x):
        x = F.gelu(self.conv(x)) * self.scale + self.shift * 0.5
        x = x * torch.sigmoid(self.point(x)) - x.mean((2, 3), keepdim=True)
        return self.head(F.relu(self.down(x)).amax((2, 3)))


@graph(IMAGE)
class ActivationsAtZero(nn.Module):
    """Sigmoid, softplus, cosine and exponential: dead channels still carry a constant."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 24, 1)
        self.c, self.d = nn.Conv2d(24, 24, 1), nn.Linear(24, 4)

    def forward(self, x):
        x = torch.sigmoid(self.a(x))
        x = F.softplus(self.b(x))
        return self.d(torch.exp(-torch.cos(self.c(x))).mean((2, 3)))


@graph(IMAGE)
class PaddedSigmoid(nn.Module):
    """A constant that zero padding makes different at the border, beside layers where it is not."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 32, 3, padding=1)
        self.c, self.d = nn.Conv2d(32, 32, 3, padding=1), nn.Linear(32, 4)

    def forward(self, x):
        x = torch.sigmoid(self.a(x))
        x = F.relu(self.b(x))
        return self.d(F.relu(self.c(x)).mean((2, 3)))


@graph(IMAGE)
class LayerScale(nn.Module):
    """A parameter per channel on each branch, as in CaiT and ConvNeXt."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.blocks = nn.ModuleList(Block(16) for _ in range(2))
        self.gammas = nn.ParameterList(nn.Parameter(torch.randn(16)) for _ in range(2))
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        x = self.stem(x)
        for block, gamma in zip(self.blocks, self.gammas, strict=True):
            x = x + gamma.view(-1, 1, 1) * block(x)
        return self.head(x.mean((-1, -2)))


@graph(real(N, 10))
class Highway(nn.Module):
    """Gates that mix a layer with its input: lerp, and one minus the gate."""

    def __init__(self):
        super().__init__()
        self.enter = nn.Linear(10, 24)
        self.value, self.gate = nn.Linear(24, 24), nn.Linear(24, 24)
        self.leave = nn.Linear(24, 3)

    def forward(self, x):
        x = torch.tanh(self.enter(x))
        gate = torch.sigmoid(self.gate(x))
        x = gate * F.relu(self.value(x)) + (1 - gate) * x
        return self.leave(torch.lerp(x, F.relu(x), gate))
