"""Several inputs and outputs, containers, keywords, and control flow that depends on values."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graphs.registry import N, graph, real, whole

ROWS = real(N, 12)


class Trunk(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(12, 32), nn.Linear(32, 24)

    def forward(self, x):
        return F.relu(self.b(F.relu(self.a(x))))


@graph({"left": ROWS, "right": [ROWS, real(N, 5)]})
class DictInput(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk, self.other, self.head = Trunk(), nn.Linear(5, 24), nn.Linear(24, 4)

    def forward(self, batch):
        x = self.trunk(batch["left"]) + self.trunk(batch["right"][0])
        return {
            "logits": self.head(x * self.other(batch["right"][1])),
            "size": len(x),
            "extra": [x.sum()],
        }


class Pair(NamedTuple):
    mean: Tensor
    scale: Tensor


@graph(Pair(ROWS, ROWS))
class NamedTuples(nn.Module):
    """A NamedTuple goes in and comes out (a variational encoder)."""

    def __init__(self):
        super().__init__()
        self.trunk, self.mean, self.scale = Trunk(), nn.Linear(24, 6), nn.Linear(24, 6)

    def forward(self, pair):
        x = self.trunk(pair.mean * pair.scale)
        return Pair(self.mean(x), F.softplus(self.scale(x)))


@dataclass
class Batch:
    rows: Tensor
    weight: float


@dataclass
class Prediction:
    logits: Tensor
    features: Tensor | None = None


def batch(generator, n):
    return Batch(torch.randn(n, 12, generator=generator, dtype=torch.float64), 0.5)


@graph(batch)
class Dataclasses(nn.Module):
    """A dataclass goes in and comes out; one output is a hidden layer, whose size must stay."""

    def __init__(self):
        super().__init__()
        self.trunk, self.features, self.head = Trunk(), nn.Linear(24, 8), nn.Linear(8, 4)

    def forward(self, given):
        x = self.features(self.trunk(given.rows * given.weight))
        return Prediction(self.head(F.relu(x)), features=x)


@graph(ROWS, scale=2.0, extra=real(N, 12))
class KeywordOnly(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk, self.head = Trunk(), nn.Linear(24, 4)

    def forward(self, x, *, scale, extra=None, verbose=False):
        return self.head(self.trunk(x if extra is None else x + extra) * scale)


@graph(ROWS)
class Branching(nn.Module):
    """Python looks at a value and takes one of two branches, or stops a loop early."""

    def __init__(self):
        super().__init__()
        self.trunk, self.a, self.b = Trunk(), nn.Linear(24, 24), nn.Linear(24, 24)
        self.head = nn.Linear(24, 4)

    def forward(self, x):
        gate = x.abs().mean()
        h = self.trunk(x)
        h = F.relu(self.a(h)) if gate > 0 else F.relu(self.b(h))
        steps = 0
        while steps < 3 and float(gate) > 0.1 * steps:
            h, steps = torch.tanh(self.b(h)), steps + 1
        return self.head(h)


@graph(ROWS)
class OtherBranch(nn.Module):
    """Two branches of one width: other inputs than the example take the other one."""

    def __init__(self):
        super().__init__()
        self.trunk, self.a, self.b = Trunk(), nn.Linear(24, 24), nn.Linear(24, 24)
        self.head = nn.Linear(24, 4)

    def forward(self, x):
        h = self.trunk(x)
        return self.head(torch.tanh(self.a(h) if x.sum() > 0 else self.b(h)))


@graph(ROWS)
class EarlyExit(nn.Module):
    """Two heads; the first answers when it is sure enough."""

    def __init__(self):
        super().__init__()
        self.trunk, self.first, self.more = Trunk(), nn.Linear(24, 4), nn.Linear(24, 48)
        self.second = nn.Linear(48, 4)

    def forward(self, x):
        x = self.trunk(x)
        logits = self.first(x)
        if logits.softmax(-1).max() > 0.999:
            return logits
        return self.second(F.relu(self.more(x)))


@graph(ROWS)
class Experts(nn.Module):
    """Each row goes to its two best experts; rows are picked and put back by index."""

    def __init__(self):
        super().__init__()
        self.enter, self.router = nn.Linear(12, 20), nn.Linear(20, 4)
        self.up = nn.ModuleList(nn.Linear(20, 32) for _ in range(4))
        self.down = nn.ModuleList(nn.Linear(32, 20) for _ in range(4))
        self.head = nn.Linear(20, 3)

    def forward(self, x):
        x = F.relu(self.enter(x))
        weights, chosen = self.router(x).softmax(-1).topk(2, dim=-1)
        out = torch.zeros_like(x)
        for i, (up, down) in enumerate(zip(self.up, self.down, strict=True)):
            rows, places = torch.where(chosen == i)
            y = down(F.relu(up(x[rows]))) * weights[rows, places, None]
            out.index_add_(0, rows, y)
        return self.head(x + out)


@graph(real(N, 4, 12))
class StackedExperts(nn.Module):
    """Experts in one parameter, chosen by one-hot routing and batched products."""

    def __init__(self):
        super().__init__()
        self.router = nn.Linear(12, 3)
        self.up = nn.Parameter(torch.randn(3, 12, 32) / 4)
        self.down = nn.Parameter(torch.randn(3, 32, 12) / 6)
        self.head = nn.Linear(12, 3)

    def forward(self, x):
        scores = self.router(x).softmax(-1)
        route = F.one_hot(scores.argmax(-1), 3).to(x.dtype) * scores
        y = torch.einsum("bnc,ecd->bned", x, self.up).relu()
        y = torch.einsum("bned,edc->bnec", y, self.down)
        return self.head(x + (y * route[..., None]).sum(2))


@graph(whole(9, N), ROWS)
class PerClass(nn.Module):
    """A weight per class, picked for each row: the class index is an input."""

    def __init__(self):
        super().__init__()
        self.trunk, self.table = Trunk(), nn.Embedding(9, 24)
        self.mid, self.head = nn.Linear(24, 40), nn.Linear(40, 2)

    def forward(self, kind, x):
        return self.head(F.relu(self.mid(self.trunk(x) * self.table(kind))))
