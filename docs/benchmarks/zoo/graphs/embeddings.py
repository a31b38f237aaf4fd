"""Embeddings: tied to the output, in bags, of positions and of learned queries."""

import torch
from torch import nn
from torch.nn import functional as F

from graphs.registry import N, graph, real, whole


@graph(whole(30, N, 6))
class TiedLanguageModel(nn.Module):
    """The output layer's weight is the embedding's; sizes are attributes."""

    def __init__(self):
        super().__init__()
        self.tokens, self.places = nn.Embedding(30, 24), nn.Embedding(6, 24)
        self.up, self.down = nn.Linear(24, 64), nn.Linear(64, 24)
        self.head = nn.Linear(24, 30, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, ids):
        x = self.tokens(ids) + self.places(torch.arange(ids.shape[1]))
        return self.head(x + self.down(F.gelu(self.up(x))))


@graph(whole(30, N, 6))
class TiedFunctional(nn.Module):
    """Tied through ``F.linear`` and a projection between (factorized embedding)."""

    def __init__(self):
        super().__init__()
        self.tokens, self.expand = nn.Embedding(30, 16, padding_idx=0), nn.Linear(16, 32)
        self.mid, self.shrink = nn.Linear(32, 32), nn.Linear(32, 16)

    def forward(self, ids):
        x = self.expand(self.tokens(ids))
        x = self.shrink(F.relu(self.mid(F.relu(x))))
        return F.linear(x, self.tokens.weight)


@graph(whole(30, N, 5), whole(9, N, 4))
class Bags(nn.Module):
    """EmbeddingBag by sum and mean, and a plain embedding, concatenated (a recommender)."""

    def __init__(self):
        super().__init__()
        self.a = nn.EmbeddingBag(30, 12, mode="mean")
        self.b = nn.EmbeddingBag(9, 10, mode="sum")
        self.c = nn.Embedding(9, 8)
        self.up, self.head = nn.Linear(30, 40), nn.Linear(40, 1)

    def forward(self, words, tags):
        x = torch.cat([self.a(words), self.b(tags), self.c(tags).mean(1)], -1)
        return self.head(F.relu(self.up(x)))


@graph(real(N, 9, 12))
class LearnedQueries(nn.Module):
    """Queries that are parameters, repeated for the batch (Perceiver, DETR)."""

    def __init__(self):
        super().__init__()
        self.queries = nn.Parameter(torch.randn(3, 24))
        self.k, self.v, self.q = nn.Linear(12, 24), nn.Linear(12, 24), nn.Linear(24, 24)
        self.up, self.head = nn.Linear(24, 48), nn.Linear(48, 2)

    def forward(self, x):
        q = self.q(self.queries.unsqueeze(0).repeat(len(x), 1, 1))
        y = F.scaled_dot_product_attention(q[:, None], self.k(x)[:, None], self.v(x)[:, None])
        return self.head(F.relu(self.up(y.squeeze(1) + q)))


@graph(real(N, 3, 8, 8))
class VisionTransformer(nn.Module):
    """Class token, position embedding, pre-norm blocks; the head reads the first token."""

    def __init__(self):
        super().__init__()
        self.patch, self.cls = nn.Conv2d(3, 24, 4, 4), nn.Parameter(torch.randn(1, 1, 24))
        self.places = nn.Parameter(torch.randn(1, 5, 24))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(24, 4, 64, batch_first=True, norm_first=True)
            for _ in range(2)
        )
        self.norm, self.head = nn.LayerNorm(24), nn.Linear(24, 4)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], dim=1) + self.places
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


@graph(whole(30, N, 7))
class TokenConvolution(nn.Module):
    """TextCNN: embedding as channels, kernels of several sizes, max over time."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(30, 20)
        self.convs = nn.ModuleList(nn.Conv1d(20, 14, k) for k in (2, 3, 4))
        self.head = nn.Linear(42, 3)

    def forward(self, ids):
        x = self.embed(ids).permute(0, 2, 1)
        x = [F.relu(conv(x)).max(dim=2).values for conv in self.convs]
        return self.head(torch.cat(x, 1))
