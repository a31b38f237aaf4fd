"""Slices, flips, rolls, gathers, scatters, masks and writes in place."""

import torch
from torch import nn
from torch.nn import functional as F

from graphs.registry import N, graph, real, whole

IMAGE = real(N, 3, 9, 9)


class Between(nn.Module):
    """What subclasses do to 24 channels between two convolutions."""

    outputs = 24

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 24, 3), nn.Conv2d(self.outputs, 32, 3)
        self.head = nn.Linear(32, 4)

    def between(self, x):
        raise NotImplementedError

    def forward(self, x):
        return self.head(F.relu(self.b(self.between(F.relu(self.a(x))))).mean((2, 3)))


@graph(IMAGE)
class SlicedChannels(Between):
    """Slices at literal places, one part passed on, another multiplied."""

    def between(self, x):
        return torch.cat([x[:, :6], x[:, 6:18] * 2, x[:, 18:].neg()], dim=1)


@graph(IMAGE)
class FlippedChannels(Between):
    """Channels flipped and rolled against themselves, and over space as well."""

    def between(self, x):
        return x + x.flip(1) * 0.5 + x.roll(3, 1) + torch.flip(x, (2, 3)) + x.roll((1, 2), (2, 3))


@graph(IMAGE)
class UnboundChannels(Between):
    """unbind along the channels, put back in another order."""

    def between(self, x):
        channels = x.unbind(1)
        return torch.stack(channels[12:] + channels[:12], dim=1)


@graph(IMAGE)
class IndexedChannels(Between):
    """index_select and fancy indexing by buffers and lists."""

    outputs = 30

    def __init__(self):
        super().__init__()
        self.register_buffer("order", torch.randperm(24))

    def between(self, x):
        x = torch.index_select(x, 1, self.order)
        return torch.cat([x, x[:, [0, 2, 4, 6, 8, 10]]], 1)


@graph(IMAGE)
class GatheredChannels(Between):
    """gather and scatter_add along the channels with fixed places."""

    def __init__(self):
        super().__init__()
        self.register_buffer("order", torch.randperm(24))

    def between(self, x):
        index = self.order.view(1, -1, 1, 1).expand(len(x), -1, *x.shape[2:])
        y = x.gather(1, index)
        return torch.zeros_like(x).scatter_add(1, index, y * 2) + x


@graph(IMAGE)
class SortedChannels(Between):
    """Channels in the order of their values; the largest ones of each place."""

    outputs = 32

    def between(self, x):
        return torch.cat([x.sort(dim=1).values, x.topk(8, dim=1)[0]], dim=1)


@graph(IMAGE)
class CumulativeChannels(Between):
    """Running sums over the channels."""

    def between(self, x):
        return x.cumsum(1) / (1 + x.sum(1, keepdim=True))


@graph(IMAGE)
class MaskedChannels(Between):
    """where, masked_fill and clamp by values; a fixed boolean mask of channels."""

    def __init__(self):
        super().__init__()
        self.register_buffer("on", torch.arange(24) % 5 != 0)

    def between(self, x):
        x = torch.where(x > 0.5, x, torch.zeros_like(x))
        x = x.masked_fill(x > 2, 2.0).clamp(max=1.5)
        return x * self.on.view(-1, 1, 1)


@graph(IMAGE, shortfall="slices of literal size are changed in place")
class InPlace(nn.Module):
    """relu_, add_, mul_ on results and on views; a slice of channels that is written to."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 24, 3), nn.Conv2d(24, 24, 3, padding=1)
        self.norm, self.head = nn.BatchNorm2d(24), nn.Linear(24, 4)

    def forward(self, x):
        x = self.a(x).relu_()
        y = self.norm(self.b(x))
        y += x
        y[:, :8] += 1.5 * x[:, 8:16]
        y[:, 16:].mul_(0.5)
        y.view(len(y), -1).tanh_()
        return self.head(F.relu(y * 2, inplace=True).mean((2, 3)))


@graph(IMAGE)
class FilledBuffer(nn.Module):
    """An output that is allocated first and filled part by part."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 12, 3), nn.Conv2d(3, 20, 3)
        self.c, self.head = nn.Conv2d(32, 24, 3), nn.Linear(24, 4)

    def forward(self, x):
        both = x.new_empty(len(x), 32, x.shape[2] - 2, x.shape[3] - 2)
        both[:, :12] = self.a(x)
        both[:, 12:] = self.b(x)
        return self.head(F.relu(self.c(F.relu(both))).mean((2, 3)))


@graph(real(N, 3, 12))
class Strided(nn.Module):
    """Windows over time by as_strided and by unfold of a tensor."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Conv1d(3, 16, 3), nn.Conv1d(16, 24, 1), nn.Linear(24, 4)

    def forward(self, x):
        x = F.relu(self.a(x)).contiguous()
        n, c, t = x.shape
        windows = x.as_strided((n, c, t - 2, 3), (c * t, t, 1, 1)).mean(-1)
        return self.head(F.relu(self.b(windows + x.unfold(2, 3, 1).amax(-1))).mean(-1))


@graph(IMAGE)
class TemporalShift(nn.Module):
    """TSM: some channels move one step in time, the others stay."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 24, 3), nn.Conv2d(24, 32, 3), nn.Linear(32, 4)

    def forward(self, x):
        x = F.relu(self.a(x))
        out = torch.zeros_like(x)
        out[:, :6, :-1] = x[:, :6, 1:]
        out[:, 6:12, 1:] = x[:, 6:12, :-1]
        out[:, 12:] = x[:, 12:]
        return self.head(F.relu(self.b(out)).mean((2, 3)))


@graph(IMAGE)
class RolledChannels(nn.Module):
    """Channels moved on by some against themselves: those that pass the end stay."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 32, 3), nn.Conv2d(32, 32, 1)
        self.c = nn.Conv2d(32, 4, 1)

    def forward(self, x):
        x = F.relu(self.a(x)).roll(2, 1)
        return self.c(F.relu(self.b(x)).roll((-1, 1), (1, 3)))


@graph(IMAGE)
class WrittenPlaces(nn.Module):
    """A tensor made first, its places filled one part after the other."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 24, 3), nn.Conv2d(24, 24, 1), nn.Conv2d(24, 4, 1)

    def forward(self, x):
        x = F.relu(self.a(x))
        out = torch.zeros_like(x)
        out[:, :, ::2] = self.b(x[:, :, ::2])
        out[:, :, 1::2] += x[:, :, 1::2]
        return self.c(out)


@graph(real(N, 6, 8), whole(6, 4))
class ChosenPlaces(nn.Module):
    """Positions looked up by an input; features follow."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 32), nn.Linear(32, 24), nn.Linear(24, 4)

    def forward(self, x, places):
        x = F.relu(self.a(x)).index_select(1, places)
        return self.c(F.relu(self.b(x)))
