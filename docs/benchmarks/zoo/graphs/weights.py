"""Weight sharing, parameters used directly, weights that are computed."""

import torch
from torch import nn
from torch.nn import functional as F

from graphs.registry import N, graph, real

IMAGE = real(N, 3, 9, 9)


@graph(real(N, 3, 9, 9), real(N, 3, 9, 9))
class Siamese(nn.Module):
    """One encoder for two inputs; the outputs are compared."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 24, 3),
            nn.AdaptiveMaxPool2d(1), nn.Flatten(),
        )  # fmt: skip
        self.head = nn.Linear(24, 1)

    def forward(self, x, y):
        x, y = self.encoder(x), self.encoder(y)
        return self.head((x - y).abs()), F.cosine_similarity(x, y)


@graph(IMAGE)
class SharedBlock(nn.Module):
    """One convolution used three times, each time with a norm of its own."""

    def __init__(self):
        super().__init__()
        self.stem, self.loop = nn.Conv2d(3, 20, 3), nn.Conv2d(20, 20, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(20) for _ in range(3))
        self.head = nn.Linear(20, 4)

    def forward(self, x):
        x = self.stem(x)
        for norm in self.norms:
            x = x + F.relu(norm(self.loop(x)))
        return self.head(x.mean((2, 3)))


@graph(real(N, 12))
class SharedParameter(nn.Module):
    """Two layers hold one weight; a third one uses it transposed (a tied autoencoder)."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(12, 32), nn.Linear(12, 32), nn.Linear(32, 16)
        self.b.weight = self.a.weight
        self.out = nn.Parameter(torch.randn(12))

    def forward(self, x):
        hidden = torch.tanh(self.a(x)) + torch.tanh(self.b(x * 2))
        code = torch.tanh(self.c(hidden))
        hidden = F.linear(code, self.c.weight.t())
        return F.linear(hidden, self.a.weight.t(), self.out)


@graph(IMAGE)
class OwnParameters(nn.Module):
    """Kernels, biases and scales in parameters and parameter lists, used by functions."""

    def __init__(self):
        super().__init__()
        self.kernels = nn.ParameterList(
            [
                nn.Parameter(torch.randn(16, 3, 3, 3) / 5),
                nn.Parameter(torch.randn(24, 16, 3, 3) / 9),
            ]
        )
        self.shifts = nn.ParameterDict({"a": torch.randn(16), "b": torch.randn(24)})
        self.scale = nn.Parameter(torch.randn(24))
        self.matrix = nn.Parameter(torch.randn(24, 32) / 5)
        self.head = nn.Linear(32, 4)

    def forward(self, x):
        x = F.relu(F.conv2d(x, self.kernels[0], self.shifts["a"]))
        x = F.relu(F.conv2d(x, self.kernels[1]) + self.shifts["b"].reshape(1, -1, 1, 1))
        x = (x * self.scale[None, :, None, None]).amax((2, 3)) @ self.matrix
        return self.head(torch.relu(x))


@graph(real(N, 12), real(N, 9))
class Bilinear(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(12, 16), nn.Linear(9, 14)
        self.both, self.head = nn.Bilinear(16, 14, 20), nn.Linear(20, 3)

    def forward(self, x, y):
        return self.head(F.relu(self.both(torch.tanh(self.a(x)), torch.tanh(self.b(y)))))


@graph(IMAGE, shortfall="a convolution whose groups are the batch")
class DynamicConvolution(nn.Module):
    """Kernels mixed from experts by attention over the experts, one kernel per sample."""

    def __init__(self):
        super().__init__()
        self.stem, self.route = nn.Conv2d(3, 12, 3), nn.Linear(12, 4)
        self.experts = nn.Parameter(torch.randn(4, 16, 12, 3, 3) / 9)
        self.last, self.head = nn.Conv2d(16, 24, 3), nn.Linear(24, 4)

    def forward(self, x):
        x = F.relu(self.stem(x))
        weights = self.route(x.mean((2, 3))).softmax(-1)
        n, c, h, w = x.shape
        kernel = (weights @ self.experts.flatten(1)).view(-1, c, 3, 3)
        x = F.conv2d(x.reshape(1, n * c, h, w), kernel, groups=n)
        x = F.relu(x.view(n, -1, h - 2, w - 2))
        return self.head(F.relu(self.last(x)).mean((2, 3)))


@graph(real(N, 12), real(N, 6))
class HyperNetwork(nn.Module):
    """A network whose output is another's weight matrix."""

    def __init__(self):
        super().__init__()
        self.enter, self.hidden, self.make = nn.Linear(12, 16), nn.Linear(6, 30), nn.Linear(30, 160)
        self.head = nn.Linear(10, 3)

    def forward(self, x, condition):
        weight = self.make(F.relu(self.hidden(condition))).view(-1, 10, 16)
        x = torch.bmm(weight, F.relu(self.enter(x)).unsqueeze(-1)).squeeze(-1)
        return self.head(F.relu(x))


@graph(IMAGE)
class Reparametrized(nn.Module):
    """RepVGG as it is trained: parallel kernels are padded and summed in the forward pass."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.big, self.small = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 1)
        self.last, self.head = nn.Conv2d(16, 24, 3), nn.Linear(24, 4)

    def forward(self, x):
        x = F.relu(self.stem(x))
        weight = self.big.weight + F.pad(self.small.weight, [1, 1, 1, 1])
        x = F.relu(F.conv2d(x, weight, self.big.bias + self.small.bias, padding=1))
        return self.head(F.relu(self.last(x)).mean((2, 3)))


@graph(real(N, 16))
class LowRank(nn.Module):
    """LoRA beside a frozen layer: a product of two thin matrices is added to its output."""

    def __init__(self):
        super().__init__()
        self.base, self.out = nn.Linear(16, 32), nn.Linear(32, 4)
        self.base.requires_grad_(False)
        self.down, self.up = nn.Parameter(torch.randn(4, 16)), nn.Parameter(torch.randn(32, 4))

    def forward(self, x):
        x = F.relu(self.base(x) + 0.5 * (x @ self.down.t()) @ self.up.t())
        return self.out(x)
