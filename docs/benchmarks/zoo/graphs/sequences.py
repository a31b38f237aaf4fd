"""Whole small sequence models: decoder, mixer, memory, graph and capsule networks."""

import torch
from torch import nn
from torch.nn import functional as F

from graphs.registry import N, graph, real, whole


class DecoderBlock(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.n_head, self.n_embd = heads, width
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.c_attn, self.c_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.c_fc, self.c_out = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.register_buffer("bias", torch.ones(8, 8, dtype=torch.bool).tril().view(1, 1, 8, 8))

    def attend(self, x):
        b, t, _ = x.size()
        q, k, v = self.c_attn(x).split(self.n_embd, dim=2)
        q, k, v = (y.view(b, t, self.n_head, -1).transpose(1, 2) for y in (q, k, v))
        scores = q @ k.transpose(-2, -1) * (k.size(-1) ** -0.5)
        scores = scores.masked_fill(~self.bias[:, :, :t, :t], float("-inf"))
        return self.c_proj((scores.softmax(-1) @ v).transpose(1, 2).contiguous().view(b, t, -1))

    def forward(self, x):
        x = x + self.attend(self.ln_1(x))
        return x + self.c_out(F.gelu(self.c_fc(self.ln_2(x))))


@graph(whole(20, N, 8))
class GPT(nn.Module):
    """Fused attention split by an attribute, a mask buffer, tied output."""

    def __init__(self):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(20, 24), nn.Embedding(8, 24)
        self.h = nn.ModuleList(DecoderBlock(24, 4) for _ in range(2))
        self.ln_f, self.lm_head = nn.LayerNorm(24), nn.Linear(24, 20, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, ids):
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1]))[None]
        for block in self.h:
            x = block(x)
        return self.lm_head(self.ln_f(x))


@graph(real(N, 8, 12))
class Mixer(nn.Module):
    """Token mixing: a linear layer over the positions, hidden units between."""

    def __init__(self):
        super().__init__()
        self.enter, self.norm1, self.norm2 = nn.Linear(12, 24), nn.LayerNorm(24), nn.LayerNorm(24)
        self.t1, self.t2 = nn.Linear(8, 32), nn.Linear(32, 8)
        self.c1, self.c2, self.head = nn.Linear(24, 64), nn.Linear(64, 24), nn.Linear(24, 4)

    def forward(self, x):
        x = self.enter(x)
        x = x + self.t2(F.gelu(self.t1(self.norm1(x).transpose(1, 2)))).transpose(1, 2)
        x = x + self.c2(F.gelu(self.c1(self.norm2(x))))
        return self.head(x.mean(1))


@graph(real(N, 8, 12))
class GatedMLP(nn.Module):
    """gMLP: half of the features is mixed over the positions and multiplies the other half."""

    def __init__(self):
        super().__init__()
        self.up, self.norm, self.mix = nn.Linear(12, 48), nn.LayerNorm(24), nn.Conv1d(8, 8, 1)
        self.down, self.head = nn.Linear(24, 12), nn.Linear(12, 3)

    def forward(self, x):
        a, b = F.gelu(self.up(x)).chunk(2, dim=-1)
        return self.head(x + self.down(a * self.mix(self.norm(b))))


@graph(real(N, 6, 10))
class GraphConvolution(nn.Module):
    """A fixed adjacency matrix multiplies from the left, dense and sparse."""

    def __init__(self):
        super().__init__()
        adjacency = (torch.rand(6, 6) > 0.5).double() + torch.eye(6)
        self.register_buffer("adjacency", adjacency / adjacency.sum(1, keepdim=True))
        self.a, self.b, self.c = nn.Linear(10, 24), nn.Linear(24, 32), nn.Linear(32, 3)

    def forward(self, x):
        x = F.relu(self.adjacency @ self.a(x))
        x = F.relu(torch.einsum("ij,bjc->bic", self.adjacency, self.b(x)))
        return self.c(x).mean(1)


@graph(real(9, 10), whole(9, 2, 20))
class MessagePassing(nn.Module):
    """Messages along edges, gathered by index and summed by scatter."""

    def __init__(self):
        super().__init__()
        self.message, self.update = nn.Linear(20, 24), nn.Linear(34, 32)
        self.head = nn.Linear(32, 3)

    def forward(self, x, edges):
        source, target = edges
        message = F.relu(self.message(torch.cat([x[source], x[target]], -1)))
        received = x.new_zeros(len(x), message.shape[-1]).index_add_(0, target, message)
        return self.head(F.relu(self.update(torch.cat([x, received], -1))))


@graph(real(N, 9, 10))
class PointNet(nn.Module):
    """Shared layers per point, a maximum over points, joined back to each point."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv1d(10, 24, 1), nn.Conv1d(24, 32, 1)
        self.norm, self.c, self.out = nn.BatchNorm1d(24), nn.Conv1d(56, 24, 1), nn.Conv1d(24, 3, 1)

    def forward(self, x):
        local = F.relu(self.norm(self.a(x.transpose(1, 2))))
        top = self.b(local).max(2, keepdim=True)[0].repeat(1, 1, x.shape[1])
        return self.out(F.relu(self.c(torch.cat([local, top], 1))))


@graph(real(N, 5, 12))
class Hopfield(nn.Module):
    """Stored patterns that are parameters, retrieved twice by softmax."""

    def __init__(self):
        super().__init__()
        self.enter, self.head = nn.Linear(12, 24), nn.Linear(24, 4)
        self.patterns = nn.Parameter(torch.randn(40, 24) / 3)

    def forward(self, x):
        x = self.enter(x)
        for _ in range(2):
            x = torch.softmax(2 * x @ self.patterns.T, dim=-1) @ self.patterns
        return self.head(x)


@graph(real(N, 1, 10, 10))
class Capsules(nn.Module):
    """Votes by einsum, routed by agreement for three rounds, squashed."""

    def __init__(self):
        super().__init__()
        self.conv, self.primary = nn.Conv2d(1, 16, 3), nn.Conv2d(16, 16, 3, 3)
        self.votes = nn.Parameter(torch.randn(16, 5, 6, 4) / 3)

    def squash(self, x):
        norm = (x * x).sum(-1, keepdim=True)
        return x * norm / (1 + norm) / torch.sqrt(norm + 1e-9)

    def forward(self, x):
        x = self.primary(F.relu(self.conv(x)))
        x = self.squash(x.view(len(x), 4, 4, -1).permute(0, 2, 3, 1).reshape(len(x), 16, 4))
        votes = torch.einsum("bid,ijkd->bijk", x, self.votes)
        logits = torch.zeros_like(votes[..., 0])
        for _ in range(3):
            out = self.squash((logits.softmax(2)[..., None] * votes).sum(1))
            logits = logits + (votes * out[:, None]).sum(-1)
        return out.norm(dim=-1)
