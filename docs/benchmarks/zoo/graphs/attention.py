"""Attention written by hand: fused, grouped, cross, linear, windowed, by einsum."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from graphs.registry import N, graph, real

TOKENS = real(N, 6, 24)


class Residual(nn.Module):
    """Attention and a feed-forward part in a stream without norms."""

    def __init__(self, attention, width=24):
        super().__init__()
        self.enter, self.attention = nn.Linear(24, width), attention
        self.up, self.down = nn.Linear(width, 40), nn.Linear(40, width)
        self.head = nn.Linear(width, 4)

    def forward(self, x):
        x = self.enter(x)
        x = x + self.attention(x)
        return self.head(x + self.down(F.gelu(self.up(x))))


class Fused(nn.Module):
    def __init__(self, width=24, heads=4):
        super().__init__()
        self.num_heads, self.head_dim = heads, width // heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        b, n, _ = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        weights = ((q * self.head_dim**-0.5) @ k.transpose(-2, -1)).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(b, n, -1))


@graph(TOKENS)
def FusedAttention():
    return Residual(Fused())


class FromWidth(nn.Module):
    """The head's size is computed from the input's width: ``c // heads``, also for the scale."""

    def __init__(self):
        super().__init__()
        self.heads = 4
        self.qkv, self.proj = nn.Linear(24, 72, bias=False), nn.Linear(24, 24)

    def forward(self, x):
        b, n, c = x.shape
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        q, k, v = (t.view(b, n, self.heads, c // self.heads).transpose(1, 2) for t in (q, k, v))
        weights = F.softmax(q @ k.mT / math.sqrt(c // self.heads), dim=-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(b, n, c))


@graph(TOKENS)
def AttentionFromWidth():
    return Residual(FromWidth())


class Separate(nn.Module):
    """Fewer heads for keys and values than for queries; ``scaled_dot_product_attention``."""

    def __init__(self, groups):
        super().__init__()
        self.heads, self.groups, self.size = 4, groups, 6
        self.q, self.k = nn.Linear(24, 24), nn.Linear(24, 6 * groups)
        self.v, self.o = nn.Linear(24, 6 * groups), nn.Linear(24, 24)

    def forward(self, x):
        b, n, _ = x.shape
        q = self.q(x).view(b, n, self.heads, self.size).transpose(1, 2)
        k = self.k(x).view(b, n, self.groups, self.size).transpose(1, 2)
        v = self.v(x).view(b, n, self.groups, self.size).transpose(1, 2)
        k = k.repeat_interleave(self.heads // self.groups, dim=1)
        v = v[:, :, None].expand(-1, -1, self.heads // self.groups, -1, -1).flatten(1, 2)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o(y.transpose(1, 2).flatten(2))


@graph(TOKENS)
def GroupedQuery():
    return Residual(Separate(2))


@graph(TOKENS)
def MultiQuery():
    return Residual(Separate(1))


class EinsumAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(3, 24, 4, 6) / 5)
        self.o = nn.Parameter(torch.randn(4, 6, 24) / 5)

    def forward(self, x):
        q, k, v = torch.einsum("bnc,tchd->tbhnd", x, self.w)
        weights = torch.einsum("bhid,bhjd->bhij", q, k).mul(6**-0.5).softmax(-1)
        return torch.einsum("bhij,bhjd,hdc->bic", weights, v, self.o)


@graph(TOKENS)
def Einsum():
    return Residual(EinsumAttention())


class Linear(nn.Module):
    """Kernel attention: elu + 1 features, no softmax, key-value products first."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(24, 24) for _ in range(3))
        self.o = nn.Linear(24, 24)

    def forward(self, x):
        q, k, v = (f(x).unflatten(-1, (4, 6)).transpose(1, 2) for f in (self.q, self.k, self.v))
        q, k = F.elu(q) + 1, F.elu(k) + 1
        y = (q @ (k.mT @ v)) / (q @ k.sum(2, keepdim=True).mT)
        return self.o(y.transpose(1, 2).flatten(2))


@graph(TOKENS)
def LinearAttention():
    return Residual(Linear())


@graph(TOKENS, real(N, 9, 10))
class CrossAttention(nn.Module):
    """Queries from one input, keys and values from another of another width."""

    def __init__(self):
        super().__init__()
        self.q, self.kv, self.o = nn.Linear(24, 32), nn.Linear(10, 64), nn.Linear(32, 24)
        self.heads, self.head = 4, nn.Linear(24, 4)

    def forward(self, x, memory):
        b, n, _ = x.shape
        k, v = self.kv(memory).view(b, -1, 2, self.heads, 8).unbind(2)
        q = self.q(x).view(b, n, self.heads, -1)
        y = F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)))
        return self.head(x + self.o(y.transpose(1, 2).reshape(b, n, -1)))


@graph(real(N, 24, 5, 5))
class TransposedAttention(nn.Module):
    """XCiT and Restormer: attention between channels, queries and keys of unit length."""

    def __init__(self):
        super().__init__()
        self.qkv, self.depth = nn.Conv2d(24, 72, 1), nn.Conv2d(72, 72, 3, padding=1, groups=72)
        self.temperature, self.proj = nn.Parameter(torch.ones(4, 1, 1)), nn.Conv2d(24, 24, 1)
        self.up, self.down = nn.Conv2d(24, 64, 1), nn.Conv2d(64, 24, 1)
        self.head = nn.Linear(24, 4)

    def forward(self, x):
        b, c, h, w = x.shape
        q, k, v = (t.reshape(b, 4, c // 4, h * w) for t in self.depth(self.qkv(x)).chunk(3, dim=1))
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        weights = (q @ k.transpose(-2, -1) * self.temperature).softmax(dim=-1)
        x = x + self.proj((weights @ v).reshape(b, c, h, w))
        x = x + self.down(F.gelu(self.up(x)))
        return self.head(x.mean((2, 3)))


class Talking(nn.Module):
    """Talking heads: the heads are mixed before and after the softmax."""

    def __init__(self):
        super().__init__()
        self.qkv, self.proj, self.size = nn.Linear(24, 72), nn.Linear(24, 24), 6
        self.before, self.after = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        b, n, _ = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, -1, self.size).permute(2, 0, 3, 1, 4)
        weights = self.before((q @ k.mT / 6**0.5).permute(0, 2, 3, 1)).softmax(-2)
        y = self.after(weights).permute(0, 3, 1, 2) @ v
        return self.proj(y.transpose(1, 2).reshape(b, n, -1))


@graph(TOKENS)
def TalkingHeads():
    return Residual(Talking())


class Broadcast(nn.Module):
    """One key and value head for all query heads by broadcasting; feature sizes left to views."""

    def __init__(self):
        super().__init__()
        self.heads = 4
        self.q, self.o = nn.Linear(24, 32), nn.Linear(40, 24)
        self.k, self.v = nn.Linear(24, 8), nn.Linear(24, 10)

    def forward(self, x):
        b, n, _ = x.shape
        q = self.q(x).reshape(b, n, self.heads, -1).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, self.k(x).unsqueeze(1), self.v(x).unsqueeze(1))
        flat = F.scaled_dot_product_attention(self.k(x), self.k(x), self.v(x), scale=0.3)
        return self.o((y + flat[:, None]).transpose(1, 2).reshape(b, n, -1))


@graph(TOKENS)
def BroadcastAttention():
    return Residual(Broadcast())
