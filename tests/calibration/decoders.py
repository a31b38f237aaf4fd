"""Small models in the manner of those that people calibrate."""

import torch
import torch.nn.functional as F
from torch import nn


class OnePlusNorm(nn.Module):
    """RMS norm that multiplies by 1 + w, as Gemma's."""

    def __init__(self, size):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(size) * 0.1)

    def forward(self, x):
        scale = torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)
        return x * scale * (1 + self.weight)


class Block(nn.Module):
    """Attention with grouped queries and a gated MLP; ``router`` is a second reader of a norm."""

    def __init__(self, size=32, heads=4, groups=2, inner=48, norm=nn.RMSNorm, router=False):
        super().__init__()
        self.heads, self.groups, self.head = heads, groups, size // heads
        self.norm1, self.norm2 = norm(size), norm(size)
        self.q = nn.Linear(size, size, bias=False)
        self.k = nn.Linear(size, groups * self.head, bias=False)
        self.v = nn.Linear(size, groups * self.head)
        self.o = nn.Linear(size, size, bias=False)
        self.gate, self.up = nn.Linear(size, inner), nn.Linear(size, inner)
        self.down = nn.Linear(inner, size)
        self.router = router

    def forward(self, x, scale=1.0):
        h = self.norm1(x)
        shape = (*x.shape[:2], -1, self.head)
        q, k, v = (each(h).view(shape).transpose(1, 2) for each in (self.q, self.k, self.v))
        k, v = (each.repeat_interleave(self.heads // self.groups, 1) for each in (k, v))
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        x = x + scale * self.o(mixed)
        h = self.norm2(x)
        out = self.down(F.silu(self.gate(h)) * self.up(h))
        if self.router:
            out = out * torch.sigmoid(h.mean(-1, keepdim=True))
        return (x + out,)  # a tuple, as many do


class Decoder(nn.Module):
    """An embedding, blocks in a list with code between them, a norm and a head."""

    def __init__(self, depth=3, skip=False, **kwargs):
        super().__init__()
        self.embed = nn.Embedding(40, 32)
        self.layers = nn.ModuleList(Block(**kwargs) for _ in range(depth))
        self.norm = nn.RMSNorm(32)
        self.head = nn.Linear(32, 40, bias=False)
        self.skip = skip

    def forward(self, input_ids, attention_mask=None):
        x = self.embed(input_ids)
        seen = []
        for number, layer in enumerate(self.layers):
            seen.append(x)
            x = layer(x * 1.5, scale=1 + 0.1 * number)[0]
            if self.skip and number > 1:
                x = x + seen[1]
        return self.head(self.norm(x))


def decoder(seed=0, **kwargs):
    torch.manual_seed(seed)
    model = Decoder(**kwargs)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def tokens(count=5, seed=0, rows=2, length=9):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 40, (rows, length), generator=generator) for _ in range(count)]
