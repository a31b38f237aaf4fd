"""Channels that weigh each other: SE, ECA, CBAM, FiLM, gated units."""

import torch
from torch import nn
from torch.nn import functional as F

from graphs.registry import N, graph, real

IMAGE = real(N, 3, 9, 9)


class Wrapped(nn.Module):
    """A layer on 16 channels between two convolutions."""

    def __init__(self, layer, out=16):
        super().__init__()
        self.a, self.layer, self.b = nn.Conv2d(3, 16, 3), layer, nn.Conv2d(out, 24, 3)
        self.head = nn.Linear(24, 4)

    def forward(self, x):
        return self.head(F.relu(self.b(self.layer(F.relu(self.a(x))))).mean((2, 3)))


class Squeeze(nn.Module):
    def __init__(self):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc1, self.fc2, self.gate = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 16, 1), nn.Hardsigmoid()

    def forward(self, x):
        return x * self.gate(self.fc2(F.relu(self.fc1(self.pool(x)))))


@graph(IMAGE)
def SqueezeExcite():
    return Wrapped(Squeeze())


class Efficient(nn.Module):
    """A convolution along the channels themselves."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x):
        y = self.conv(x.mean((2, 3)).unsqueeze(1)).squeeze(1)
        return x * y.sigmoid()[:, :, None, None].expand_as(x)


@graph(IMAGE)
def EfficientChannelAttention():
    return Wrapped(Efficient())


class ConvolutionalBlock(nn.Module):
    """CBAM: a shared MLP on mean and maximum, then mean and maximum over the channels."""

    def __init__(self):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 16))
        self.place = nn.Conv2d(2, 1, 3, padding=1)

    def forward(self, x):
        gate = torch.sigmoid(self.mlp(x.mean((2, 3))) + self.mlp(x.amax((2, 3))))
        x = x * gate[..., None, None]
        pooled = torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True).values], 1)
        return x * torch.sigmoid(self.place(pooled))


@graph(IMAGE)
def CBAM():
    return Wrapped(ConvolutionalBlock())


class SoftmaxOverChannels(nn.Module):
    def __init__(self):
        super().__init__()
        self.score = nn.Conv2d(16, 16, 1)

    def forward(self, x):
        return x * self.score(x).softmax(dim=1)


@graph(IMAGE)
def ChannelSoftmax():
    return Wrapped(SoftmaxOverChannels())


class Selective(nn.Module):
    """SKNet: two kernels, a softmax over the two for each channel."""

    def __init__(self):
        super().__init__()
        self.a, self.b = (
            nn.Conv2d(16, 16, 3, padding=1),
            nn.Conv2d(16, 16, 3, padding=2, dilation=2),
        )
        self.down, self.up = nn.Linear(16, 10), nn.Linear(10, 32)

    def forward(self, x):
        both = torch.stack([F.relu(self.a(x)), F.relu(self.b(x))], dim=1)
        z = self.up(F.relu(self.down(both.sum(1).mean((2, 3)))))
        weights = z.view(len(x), 2, -1).softmax(1)
        return (both * weights[..., None, None]).sum(1)


@graph(IMAGE)
def SelectiveKernel():
    return Wrapped(Selective())


@graph(IMAGE, real(N, 7))
class FiLM(nn.Module):
    """Scales and shifts per channel from a condition, in one linear layer."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 24, 3)
        self.film, self.norm = nn.Linear(7, 32), nn.BatchNorm2d(16, affine=False)
        self.head = nn.Linear(24, 4)

    def forward(self, x, condition):
        scale, shift = self.film(condition)[:, :, None, None].chunk(2, dim=1)
        x = F.relu(self.norm(self.a(x)) * (1 + scale) + shift)
        return self.head(F.relu(self.b(x)).mean((2, 3)))


@graph(real(N, 5, 12))
class GatedUnits(nn.Module):
    """GLU, SwiGLU with one fused layer, GeGLU by slices."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(12, 40), nn.Linear(20, 48), nn.Linear(24, 36)
        self.head = nn.Linear(18, 3)

    def forward(self, x):
        x = F.glu(self.a(x), dim=-1)
        gate, value = self.b(x).chunk(2, dim=-1)
        x = self.c(F.silu(gate) * value)
        return self.head(F.gelu(x[..., :18]) * x[..., 18:])


@graph(IMAGE)
def GLUChannels():
    return nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.GLU(dim=1), nn.Conv2d(16, 48, 3), nn.GLU(dim=1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 4),
    )  # fmt: skip


@graph(real(N, 12))
class Maxout(nn.Module):
    """The largest of three pieces for each feature; a scale per channel for negative values."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.prelu = nn.Linear(12, 48), nn.Linear(16, 60), nn.PReLU(16)
        self.head = nn.Linear(20, 4)

    def forward(self, x):
        x = self.prelu(self.a(x).view(-1, 16, 3).amax(-1))
        x = torch.max(self.b(x).view(x.shape[0], 3, -1), dim=1)[0]
        return self.head(x)


@graph(real(N, 12))
class SpatialGatingUnit(nn.Module):
    """A branch that multiplies another in place of attention, in halves by index."""

    def __init__(self):
        super().__init__()
        self.a, self.prelu = nn.Linear(12, 32), nn.PReLU(32)
        self.b, self.head = nn.Linear(16, 24), nn.Linear(24, 4)

    def forward(self, x):
        x = self.prelu(self.a(x))
        half = x.shape[-1] // 2
        x = x[:, :half] * torch.tanh(x[:, half:])
        return self.head(F.relu(self.b(x)))


@graph(IMAGE)
class SlicedGate(nn.Module):
    """FocalNet: values, context and gates in one convolution, a gate is a slice of one channel."""

    def __init__(self):
        super().__init__()
        self.all = nn.Conv2d(3, 16 + 16 + 3, 1)
        self.focal = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1, groups=16) for _ in range(2))
        self.mix, self.out, self.head = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 24, 1), nn.Linear(24, 4)

    def forward(self, x):
        q, context, gates = torch.split(self.all(x), (16, 16, 3), 1)
        total = 0
        for level, focal in enumerate(self.focal):
            context = F.gelu(focal(context))
            total = total + context * gates[:, level : level + 1]
        total = total + context.mean((2, 3), keepdim=True) * gates[:, 2:]
        return self.head(F.relu(self.out(q * self.mix(total))).mean((2, 3)))
