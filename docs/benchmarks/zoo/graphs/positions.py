"""Positions in attention: rotary, relative, windows, caches, masks."""

import torch
from torch import nn
from torch.nn import functional as F

from graphs.registry import N, graph, real, whole

TOKENS = real(N, 8, 24)


def rotate(x, positions):
    """Rotate halves of the last dimension by angles that grow with the position."""
    half = x.shape[-1] // 2
    rates = 100.0 ** (-torch.arange(half, dtype=x.dtype) / half)
    angle = positions[:, None] * rates
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)


@graph(TOKENS)
class Rotary(nn.Module):
    def __init__(self):
        super().__init__()
        self.heads, self.size = 4, 6
        self.q, self.k, self.v, self.o = (nn.Linear(24, 24, bias=False) for _ in range(4))
        self.norm, self.up, self.gate, self.down = (
            nn.RMSNorm(24), nn.Linear(24, 40), nn.Linear(24, 40), nn.Linear(40, 24),
        )  # fmt: skip
        self.head = nn.Linear(24, 4)

    def forward(self, x):
        b, n, _ = x.shape
        y = self.norm(x)
        q, k, v = (f(y).view(b, n, -1, self.size).transpose(1, 2) for f in (self.q, self.k, self.v))
        positions = torch.arange(n, dtype=x.dtype)
        q, k = rotate(q, positions), rotate(k, positions)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(y.transpose(1, 2).reshape(b, n, -1))
        return self.head(x + self.down(F.silu(self.gate(x)) * self.up(x)))


@graph(TOKENS)
class RotaryComplex(nn.Module):
    """Rotation as a product of complex numbers: pairs of features are one number."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(24, 24) for _ in range(3))
        self.up, self.down = nn.Linear(24, 48), nn.Linear(48, 4)
        angle = torch.arange(8.0)[:, None] * 10 ** (-torch.arange(3.0) / 3)
        self.register_buffer("turn", torch.view_as_real(torch.polar(torch.ones_like(angle), angle)))

    def forward(self, x):
        def turned(t):
            t = t.unflatten(-1, (4, 3, 2)).transpose(1, 2)
            turn = torch.view_as_complex(self.turn)
            return torch.view_as_real(torch.view_as_complex(t.contiguous()) * turn).flatten(3)

        v = self.v(x).unflatten(-1, (4, 6)).transpose(1, 2)
        y = F.scaled_dot_product_attention(turned(self.q(x)), turned(self.k(x)), v)
        return self.down(F.relu(self.up(y.transpose(1, 2).flatten(2))))


@graph(TOKENS)
class RelativeBias(nn.Module):
    """A learned table of biases per head, looked up by distance (T5, Swin)."""

    def __init__(self):
        super().__init__()
        self.heads, self.table = 4, nn.Parameter(torch.randn(15, 4))
        places = torch.arange(8)
        self.register_buffer("index", places[:, None] - places[None] + 7)
        self.qkv, self.proj = nn.Linear(24, 72), nn.Linear(24, 24)
        self.up, self.down = nn.Linear(24, 64), nn.Linear(64, 4)

    def forward(self, x):
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        scores = (q * (c // self.heads) ** -0.5) @ k.transpose(-2, -1)
        bias = self.table[self.index.view(-1)].view(n, n, -1).permute(2, 0, 1).contiguous()
        weights = (scores + bias.unsqueeze(0)).softmax(-1)
        x = x + self.proj((weights @ v).transpose(1, 2).reshape(b, n, c))
        return self.down(F.gelu(self.up(x)))


@graph(real(N, 3, 8, 8))
class SwinBlock(nn.Module):
    """Windows cut by views, shifted by roll, a mask per window added to the scores."""

    def __init__(self):
        super().__init__()
        self.embed, self.norm = nn.Conv2d(3, 24, 2, 2), nn.LayerNorm(24)
        self.qkv, self.proj, self.heads = nn.Linear(24, 72), nn.Linear(24, 24), 3
        self.norm2, self.up, self.down = nn.LayerNorm(24), nn.Linear(24, 64), nn.Linear(64, 24)
        self.register_buffer("mask", torch.zeros(4, 1, 4, 4).bernoulli_(0.2) * -9)
        self.merge, self.head = nn.Linear(96, 32, bias=False), nn.Linear(32, 4)

    def forward(self, x):
        x = self.embed(x).permute(0, 2, 3, 1)
        b, h, w, c = x.shape
        y = torch.roll(self.norm(x), shifts=(-1, -1), dims=(1, 2))
        y = y.view(b, h // 2, 2, w // 2, 2, c).transpose(2, 3).reshape(-1, 4, c)
        qkv = self.qkv(y).reshape(-1, 4, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        scores = (q @ k.mT).view(b, 4, self.heads, 4, 4) + self.mask
        y = (scores.view(-1, self.heads, 4, 4).softmax(-1) @ v).transpose(1, 2).reshape(-1, 4, c)
        y = self.proj(y).view(b, h // 2, w // 2, 2, 2, c).transpose(2, 3).reshape(b, h, w, c)
        x = x + torch.roll(y, shifts=(1, 1), dims=(1, 2))
        x = x + self.down(F.gelu(self.up(self.norm2(x))))
        x = torch.cat([x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)], -1)
        return self.head(F.relu(self.merge(x)).mean((1, 2)))


@graph(whole(20, N, 7))
class CachedDecoder(nn.Module):
    """A causal decoder that reads a prefix, then two tokens with the cached keys and values."""

    def __init__(self):
        super().__init__()
        self.tokens, self.places = nn.Embedding(20, 24), nn.Parameter(torch.randn(1, 7, 24))
        self.q, self.k, self.v, self.o = (nn.Linear(24, 24) for _ in range(4))
        self.up, self.down = nn.Linear(24, 64), nn.Linear(64, 24)
        self.head = nn.Linear(24, 20, bias=False)

    def step(self, x, cache):
        b, n, _ = x.shape
        q, k, v = (f(x).view(b, n, 4, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
        if cache is not None:
            k, v = torch.cat([cache[0], k], 2), torch.cat([cache[1], v], 2)
        allowed = torch.ones(n, k.shape[2], dtype=torch.bool).tril(k.shape[2] - n)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
        x = x + self.o(y.transpose(1, 2).flatten(2))
        return x + self.down(F.relu(self.up(x))), (k, v)

    def forward(self, ids):
        x = self.tokens(ids) + self.places
        first, cache = self.step(x[:, :5], None)
        rest, cache = self.step(x[:, 5:], cache)
        return self.head(torch.cat([first, rest], 1))
