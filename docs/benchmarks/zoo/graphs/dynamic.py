"""Modules made of lambdas, functions, hooks and numbers; nothing but Sequential."""

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils import checkpoint

from graphs.registry import N, graph, real

IMAGE = real(N, 3, 9, 9)


class Lambda(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *args):
        return self.function(*args)


@graph(IMAGE)
def Lambdas():
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), Lambda(lambda x: x * torch.sigmoid(1.7 * x)), nn.Conv2d(16, 24, 3),
        Lambda(lambda x: F.relu(x).mean((2, 3))), nn.Linear(24, 32), Lambda(torch.tanh),
        nn.Linear(32, 4),
    )  # fmt: skip


@graph(real(N, 3, 16, 16))
def SequentialOnly():
    return nn.Sequential(
        nn.Conv2d(3, 12, 5), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(12, 20, 3), nn.Tanh(),
        nn.AvgPool2d(2), nn.Flatten(), nn.Dropout(), nn.Linear(80, 48), nn.Tanh(), nn.Linear(48, 4),
    )  # fmt: skip


class Swish(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(x)
        return grad * s * (1 + x * (1 - s))


@graph(IMAGE)
class OwnFunction(nn.Module):
    """An autograd function of the user's own, and checkpointed blocks."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 24, 3), nn.Linear(24, 4)

    def block(self, x):
        return Swish.apply(self.b(x))

    def forward(self, x):
        x = checkpoint.checkpoint(self.block, Swish.apply(self.a(x)), use_reentrant=False)
        return self.c(x.mean((2, 3)))


@graph(IMAGE)
class Hooked(nn.Module):
    """A forward hook changes a layer's output; another collects it for the head."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 24, 3)
        self.head, self.kept = nn.Linear(40, 4), []
        self.a.register_forward_hook(lambda module, args, out: F.relu(out) + 0.5 * out)
        self.a.register_forward_hook(self.keep)

    def keep(self, module, args, out):
        self.kept.append(out.mean((2, 3)))

    def forward(self, x):
        self.kept.clear()
        x = F.relu(self.b(self.a(x))).mean((2, 3))
        return self.head(torch.cat([x, self.kept.pop()], 1))


@graph(IMAGE)
class BuiltByLoop(nn.Module):
    """Layers from a ModuleDict named by strings, chosen by a list of steps."""

    def __init__(self):
        super().__init__()
        self.ops = nn.ModuleDict(
            {
                "enter": nn.Conv2d(3, 20, 3),
                "wide": nn.Conv2d(20, 20, 3, padding=1),
                "skip": nn.Identity(),
                "norm": nn.BatchNorm2d(20),
            }
        )
        self.steps = ["wide", "norm", "skip", "wide", "norm"]
        self.mix, self.head = nn.Parameter(torch.randn(5)), nn.Linear(20, 4)

    def forward(self, x):
        x = F.relu(self.ops["enter"](x))
        for weight, step in zip(self.mix, self.steps, strict=True):
            x = x + weight * F.relu(self.ops[step](x))
        return self.head(x.mean((2, 3)))


@graph(real(N, 12))
class Unused(nn.Module):
    """Layers that never run, results that nobody reads, a branch multiplied by zero."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(12, 32), nn.Linear(32, 32), nn.Linear(32, 4)
        self.never, self.ignored = nn.Linear(7, 7), nn.Linear(32, 9)

    def forward(self, x):
        x = F.relu(self.a(x))
        self.ignored(x)
        return self.c(F.relu(self.b(x)) + 0.0 * x)


@graph(real(N, 12))
class ThousandLike(nn.Module):
    """A deep chain: 60 layers."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(12, 16), *(nn.Linear(16, 16) for _ in range(60))])
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.3)
        return self.head(x)


@graph(IMAGE)
class AuxiliaryHead(nn.Module):
    """A second classifier that runs in training mode only, as GoogLeNet has."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 24, 3), nn.Linear(24, 4)
        self.aux = nn.Sequential(nn.Conv2d(16, 8, 1), nn.ReLU(), nn.Flatten(), nn.Linear(392, 4))

    def forward(self, x):
        x = F.relu(self.a(x))
        extra = self.aux(x) if self.training else None
        x = self.head(F.relu(self.b(x)).mean((2, 3)))
        return x if extra is None else (x, extra)
