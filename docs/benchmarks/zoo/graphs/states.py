"""Values that are kept, drawn or changed while the model runs."""

from collections import OrderedDict

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune

from graphs.registry import N, graph, real

IMAGE = real(N, 3, 8, 8)
ROWS = real(N, 12)


@graph(ROWS)
class NoiseInside(nn.Module):
    """A variational encoder that draws noise of its latent size, also in evaluation."""

    def __init__(self):
        super().__init__()
        self.a, self.mean, self.scale = nn.Linear(12, 40), nn.Linear(40, 10), nn.Linear(40, 10)
        self.b, self.out = nn.Linear(10, 40), nn.Linear(40, 12)

    def forward(self, x):
        h = F.relu(self.a(x))
        z = self.mean(h) + F.softplus(self.scale(h)) * torch.randn_like(self.mean(h))
        return self.out(F.relu(self.b(F.dropout(z, 0.2, training=True))))


@graph(IMAGE)
class MutatesInput(nn.Module):
    """The input itself is normalized in place."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 20, 3), nn.Conv2d(20, 30, 3), nn.Linear(30, 4)

    def forward(self, x):
        x.sub_(0.5).div_(2)
        return self.head(F.relu(self.b(F.relu(self.a(x)))).mean((2, 3)))


@graph(real(N, 6, 24))
class CacheBuffer(nn.Module):
    """Keys and values are written into buffers of a fixed size and read from there."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(24, 24) for _ in range(4))
        self.up, self.head = nn.Linear(24, 64), nn.Linear(64, 4)
        self.register_buffer("keys", torch.zeros(4, 4, 8, 6), persistent=False)
        self.register_buffer("values", torch.zeros(4, 4, 8, 6), persistent=False)

    def forward(self, x):
        b, n, _ = x.shape
        q, k, v = (f(x).view(b, n, 4, 6).transpose(1, 2) for f in (self.q, self.k, self.v))
        self.keys[:b, :, :n] = k
        self.values[:b, :, :n] = v
        y = F.scaled_dot_product_attention(q, self.keys[:b, :, :n], self.values[:b, :, :n])
        return self.head(F.relu(self.up(self.o(y.transpose(1, 2).flatten(2)))))


@graph(ROWS)
class PlainTensors(nn.Module):
    """Tensors that are neither parameters nor buffers: in attributes, lists and closures."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.head = (
            nn.Linear(12, 24), nn.Linear(24, 40), nn.Linear(40, 40), nn.Linear(40, 4),
        )  # fmt: skip
        self.scale = torch.rand(24).double() + 0.5
        self.shifts = [torch.randn(24).double()]

    def forward(self, x):
        x = self.a(x) * self.scale + self.shifts[0]
        return self.head(F.relu(self.c(F.relu(self.b(F.relu(x))))))


class Answer(OrderedDict):
    """A dictionary with attributes, as libraries of language models return it."""

    def __getattr__(self, name):
        return self[name]


class Plain:
    def __init__(self, logits, features):
        self.logits, self.features = logits, features


@graph(ROWS)
class OwnOutputs(nn.Module):
    """Outputs in an ordered dictionary's subclass and in an object of an ordinary class."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.head = (
            nn.Linear(12, 40), nn.Linear(40, 16), nn.Linear(16, 32), nn.Linear(32, 4),
        )  # fmt: skip

    def forward(self, x):
        features = self.b(F.relu(self.a(x)))
        logits = self.head(F.relu(self.c(F.relu(features))))
        return Answer(logits=logits, plain=Plain(logits, features))


@graph(IMAGE)
class TorchPruned(nn.Module):
    """Masks of ``torch.nn.utils.prune``: the weight is computed from two tensors in a hook."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 20, 3), nn.Conv2d(20, 30, 3), nn.Linear(30, 4)
        prune.ln_structured(self.a, "weight", 0.5, n=1, dim=0)
        prune.random_unstructured(self.b, "weight", 0.3)

    def forward(self, x):
        return self.head(F.relu(self.b(F.relu(self.a(x)))).mean((2, 3)))


@graph(ROWS, shortfall="the forward pass runs a backward pass")
class EnergyGradient(nn.Module):
    """The output is the gradient of a network's output by its input (forces)."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(12, 32), nn.Linear(32, 32), nn.Linear(32, 1)

    def forward(self, x):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            energy = self.c(torch.tanh(self.b(torch.tanh(self.a(x))))).sum()
            (force,) = torch.autograd.grad(energy, x, create_graph=True)
        return energy, -force


@graph(ROWS)
class Vmapped(nn.Module):
    """A function of one row, mapped over the rows by ``torch.vmap``."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(12, 32), nn.Linear(32, 24), nn.Linear(24, 4)

    def one(self, row):
        return F.relu(self.b(F.relu(self.a(row)))) * row.sum()

    def forward(self, x):
        return self.head(torch.vmap(self.one)(x))


@graph(ROWS, shortfall="TorchScript cannot be followed")
class Scripted(nn.Module):
    """A part of the model is a script module, whose code is compiled."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(12, 40), nn.Linear(40, 20), nn.Linear(20, 4)
        self.part = torch.jit.script(nn.Sequential(nn.Linear(20, 24), nn.ReLU(), nn.Linear(24, 20)))

    def forward(self, x):
        return self.head(self.part(F.relu(self.b(F.relu(self.a(x))))))


@graph(ROWS)
class SameModuleTwice(nn.Module):
    """One layer under two names, a transposed convolution tied to a convolution's weight."""

    def __init__(self):
        super().__init__()
        self.first, self.middle = nn.Linear(12, 24), nn.Linear(24, 24)
        self.alias, self.conv = self.middle, nn.Conv1d(1, 12, 5)
        self.head = nn.Linear(24, 4)

    def forward(self, x):
        y = F.conv_transpose1d(F.relu(self.conv(x[:, None])), self.conv.weight)[:, 0]
        y = F.relu(self.alias(F.relu(self.middle(F.relu(self.first(y))))))
        return self.head(y)


@graph(IMAGE)
class StoredFeatures(nn.Module):
    """Features are kept on the module in lists and attributes between calls (RAFT's pyramid)."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 20, 3), nn.Conv2d(20, 30, 3), nn.Linear(30, 4)
        self.pyramid, self.last, self.calls = [], None, 0

    def forward(self, x):
        self.last, self.calls = F.relu(self.a(x)), self.calls + 1
        self.pyramid = [self.last, F.avg_pool2d(self.last, 2)]
        x = self.b(self.pyramid[0]) + self.b(F.interpolate(self.pyramid[1], (6, 6)))
        return self.head(F.relu(x).mean((2, 3)))
