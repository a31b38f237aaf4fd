"""Channels that are repeated, interleaved, padded, sampled and looked up by value."""

import torch
from torch import nn
from torch.nn import functional as F

from graphs.registry import N, flags, graph, real, whole

IMAGE = real(N, 3, 8, 8)
ROWS = real(N, 12)


@graph(IMAGE)
class RepeatedChannels(nn.Module):
    """repeat, tile, repeat_interleave, expand and concatenation with itself along channels."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 10, 3), nn.Conv2d(60, 24, 1)
        self.head = nn.Linear(24, 4)

    def forward(self, x):
        x = F.relu(self.a(x))
        n, c, h, w = x.shape
        wide = [x.repeat(1, 2, 1, 1), x.repeat_interleave(2, dim=1), torch.cat([x, x.neg()], 1)]
        assert torch.equal(wide[0], x[:, None].expand(n, 2, c, h, w).flatten(1, 2))
        return self.head(F.relu(self.b(torch.cat(wide, 1))).mean((2, 3)))


@graph(IMAGE)
class PaddedChannels(nn.Module):
    """Channels padded with zeros and ones at the end, and cut off at the end."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 14, 3), nn.Conv2d(20, 26, 1), nn.Conv2d(28, 30, 1)
        self.head = nn.Linear(30, 4)

    def forward(self, x):
        x = F.pad(F.relu(self.a(x)), (0, 0, 0, 0, 0, 6))
        x = F.pad(F.relu(self.b(x)), (0, 0, 0, 0, 1, 1), value=1.0)
        return self.head(F.relu(self.c(x)).mean((2, 3)))


@graph(IMAGE)
class EverySecondChannel(nn.Module):
    """Strided slices of channels that are written to and read from."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 24, 3), nn.Conv2d(12, 32, 1), nn.Conv2d(32, 32, 1)
        self.head = nn.Linear(32, 4)

    def forward(self, x):
        x = F.relu(self.a(x))
        x = F.relu(self.b(x[:, ::2] - x[:, 1::2]))
        y = torch.empty_like(x)
        y[:, 0::2], y[:, 1::2] = x[:, 1::2], x[:, 0::2]
        return self.head(F.relu(self.c(y)).mean((2, 3)))


@graph(ROWS)
class BooleanIndex(nn.Module):
    """Rows chosen by a mask, values chosen by a mask, unique values counted."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(12, 32), nn.Linear(32, 24), nn.Linear(24, 4)

    def forward(self, x):
        h = F.relu(self.a(x))
        out = torch.zeros(len(x), 24, dtype=x.dtype)
        chosen = x[:, 0] > -9
        out[chosen] = torch.tanh(self.b(h[chosen]))
        scale = 1 + out[out > 0.5].sum() / 100 + torch.unique(x.sign()).numel()
        return self.head(out * scale)


@graph(ROWS)
class Spline(nn.Module):
    """Values put into bins by searchsorted and bucketize, coefficients taken along."""

    def __init__(self):
        super().__init__()
        self.a, self.mid = nn.Linear(12, 20), nn.Linear(20, 40)
        self.register_buffer("knots", torch.linspace(-2, 2, 7))
        self.values, self.head = nn.Parameter(torch.randn(20, 8)), nn.Linear(40, 4)

    def forward(self, x):
        x = self.a(x)
        bins = torch.bucketize(x.detach(), self.knots)
        picked = torch.take_along_dim(self.values.expand(len(x), -1, -1), bins[..., None], 2)
        return self.head(F.relu(self.mid(x * picked[..., 0])))


@graph(IMAGE)
class Resized(nn.Module):
    """Upsampling of every mode, rotation, meshgrid coordinates as more channels (CoordConv)."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(5, 20, 3), nn.Conv2d(20, 24, 3), nn.Linear(24, 4)
        self.up = nn.Upsample(scale_factor=2, mode="bicubic")

    def forward(self, x):
        n, _, h, w = x.shape
        places = torch.meshgrid(torch.linspace(-1, 1, h), torch.linspace(-1, 1, w), indexing="ij")
        x = torch.cat([x, torch.stack(places).to(x.dtype).expand(n, -1, -1, -1)], 1)
        x = F.relu(self.a(x))
        x = self.up(x) + F.interpolate(x, scale_factor=2.0, mode="area")
        x = (
            F.interpolate(x, (9, 7), mode="bilinear", antialias=True)
            + torch.rot90(x, 1, (2, 3)).mean()
        )
        return self.head(F.relu(self.b(x)).mean((2, 3)))


@graph(real(N, 6, 10), state=real(2, N, 16), mask=flags(N, 6))
class GivenState(nn.Module):
    """Recurrent layers that start from an input, from a parameter and from zeros of a size."""

    def __init__(self):
        super().__init__()
        self.hidden = 24
        self.a, self.b = nn.GRU(10, 16, 2, batch_first=True), nn.LSTM(16, 24, batch_first=True)
        self.start, self.c = nn.Parameter(torch.randn(1, 1, 24)), nn.GRU(24, 20, batch_first=True)
        self.head = nn.Linear(20, 4)

    def forward(self, x, state, mask):
        x = x.masked_fill(mask[..., None], 0)
        x, _ = self.a(x, state)
        zeros = torch.zeros(1, len(x), self.hidden, dtype=x.dtype)
        x, _ = self.b(x, (self.start.expand(-1, len(x), -1).contiguous(), zeros))
        x, last = self.c(x)
        return self.head(x), last.sum(-1)


@graph(whole(9, N, 6))
class OneHot(nn.Module):
    """One-hot inputs, an embedding by matrix product, a bag with weights per sample."""

    def __init__(self):
        super().__init__()
        self.table, self.bag = nn.Parameter(torch.randn(9, 24)), nn.EmbeddingBag(9, 24, mode="sum")
        self.weights, self.mid, self.head = nn.Embedding(9, 1), nn.Linear(24, 40), nn.Linear(40, 4)

    def forward(self, ids):
        x = (F.one_hot(ids, 9).to(self.table.dtype) @ self.table).mean(1)
        x = x + self.bag(ids, per_sample_weights=self.weights(ids).squeeze(-1))
        return self.head(F.relu(self.mid(torch.tanh(x))))


@graph(IMAGE)
class OtherActivations(nn.Module):
    """Softmax2d, RReLU, Softmin, Threshold, CELU, Hardtanh, LogSigmoid, Softsign, Tanhshrink."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3 if i == 0 else 12, 12, 1) for i in range(8))
        self.acts = nn.ModuleList(
            [nn.RReLU(), nn.Threshold(0.1, 0.0), nn.CELU(), nn.Hardtanh(), nn.LogSigmoid(),
             nn.Softsign(), nn.Tanhshrink(), nn.Softmax2d()]
        )  # fmt: skip
        self.head = nn.Linear(12, 4)

    def forward(self, x):
        for conv, act in zip(self.convs, self.acts, strict=True):
            x = act(conv(x))
        return self.head(F.softmin(x.flatten(2), -1)[..., 0] + x.mean((2, 3)))
