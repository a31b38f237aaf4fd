"""torch's norms and reparametrizations of weights."""

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, spectral_norm, weight_norm

from graphs.registry import N, graph, real

IMAGE = real(N, 3, 9, 9)


def chain(norm, width=24):
    """Return convolutions with ``norm`` between, each norm's output padded."""
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), norm(width), nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1), norm(width), nn.ReLU(),
        nn.Conv2d(width, width, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4),
    )  # fmt: skip


@graph(IMAGE)
def GroupNorms():
    return chain(lambda width: nn.GroupNorm(4, width))


@graph(IMAGE)
def GroupNormOne():
    return chain(lambda width: nn.GroupNorm(1, width))


@graph(IMAGE)
def GroupNormPerChannel():
    return chain(lambda width: nn.GroupNorm(width, width))


@graph(IMAGE)
def InstanceNorms():
    return chain(lambda width: nn.InstanceNorm2d(width, affine=True))


@graph(IMAGE)
def InstanceNormStatistics():
    return chain(lambda width: nn.InstanceNorm2d(width, track_running_stats=True))


@graph(IMAGE)
def BatchNormPlain():
    return chain(lambda width: nn.BatchNorm2d(width, affine=False))


@graph(IMAGE)
def BatchNormBatchStatistics():
    return chain(lambda width: nn.BatchNorm2d(width, track_running_stats=False))


@graph(IMAGE)
def LocalResponseNorms():
    return chain(lambda width: nn.LocalResponseNorm(5, alpha=0.1))


@graph(real(N, 7, 12))
class LayerNorms(nn.Module):
    """Pre-norm stream: the residual itself is normalized, with and without affine parameters."""

    def __init__(self):
        super().__init__()
        self.enter = nn.Linear(12, 24)
        self.norms = nn.ModuleList(
            [
                nn.LayerNorm(24),
                nn.LayerNorm(24, elementwise_affine=False),
                nn.LayerNorm(24, bias=False),
            ]
        )
        self.ups = nn.ModuleList(nn.Linear(24, 48) for _ in range(3))
        self.downs = nn.ModuleList(nn.Linear(48, 24) for _ in range(3))
        self.head = nn.Linear(24, 4)

    def forward(self, x):
        x = self.enter(x)
        for norm, up, down in zip(self.norms, self.ups, self.downs, strict=True):
            x = x + down(F.gelu(up(norm(x))))
        return self.head(x)


@graph(real(N, 7, 12))
def LayerNormHidden():
    """Nothing but a normalized hidden layer: without the norm's channels nothing goes."""
    return nn.Sequential(nn.Linear(12, 40), nn.LayerNorm(40), nn.GELU(), nn.Linear(40, 3))


@graph(real(N, 7, 12))
def RMSNormHidden():
    return nn.Sequential(nn.Linear(12, 40), nn.RMSNorm(40), nn.SiLU(), nn.Linear(40, 3))


@graph(real(N, 3, 10))
def LayerNormOverTwo():
    """Normalized over channels and positions at once."""
    return nn.Sequential(
        nn.Conv1d(3, 16, 3, padding=1), nn.LayerNorm([16, 10]), nn.ReLU(),
        nn.Conv1d(16, 24, 3), nn.ReLU(), nn.Conv1d(24, 2, 1),
    )  # fmt: skip


@graph(IMAGE)
def WeightNormOld():
    return nn.Sequential(
        weight_norm(nn.Conv2d(3, 16, 3)), nn.ReLU(), weight_norm(nn.Conv2d(16, 24, 3)), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), weight_norm(nn.Linear(24, 4), dim=1),
    )  # fmt: skip


@graph(IMAGE)
def WeightNormParametrized():
    norm = parametrizations.weight_norm
    return nn.Sequential(
        norm(nn.Conv2d(3, 16, 3)), nn.ReLU(), norm(nn.Conv2d(16, 24, 3)), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), norm(nn.Linear(24, 4)),
    )  # fmt: skip


@graph(real(N, 12))
def SpectralNorms():
    return nn.Sequential(
        spectral_norm(nn.Linear(12, 24)), nn.ReLU(),
        parametrizations.spectral_norm(nn.Linear(24, 32)), nn.ReLU(), nn.Linear(32, 4),
    )  # fmt: skip


class Symmetric(nn.Module):
    def forward(self, weight):
        return weight.triu() + weight.triu(1).mT


@graph(real(N, 12))
class CustomParametrization(nn.Module):
    """A weight that a parametrization makes symmetric: its rows are its columns."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(12, 24), nn.Linear(24, 24), nn.Linear(24, 4)
        nn.utils.parametrize.register_parametrization(self.b, "weight", Symmetric())

    def forward(self, x):
        return self.c(F.relu(self.b(torch.tanh(self.a(x)))))
