"""Other building blocks: flows, memory, squeeze, ladders, correlation."""

import torch
from torch import nn
from torch.nn import functional as F

from graphs.registry import N, graph, real

IMAGE = real(N, 3, 8, 8)


@graph(real(N, 12))
class CouplingFlow(nn.Module):
    """Affine coupling: halves swap roles; the stream is the output, so only insides shrink."""

    def __init__(self):
        super().__init__()
        self.nets = nn.ModuleList(
            nn.Sequential(nn.Linear(6, 40), nn.Tanh(), nn.Linear(40, 12)) for _ in range(2)
        )

    def forward(self, x):
        total = 0
        for net in self.nets:
            a, b = x.chunk(2, 1)
            scale, shift = net(a).chunk(2, 1)
            x, total = torch.cat([b * scale.exp() + shift, a], 1), total + scale.sum(1)
        return x, total


@graph(IMAGE)
class Fire(nn.Module):
    """SqueezeNet's fire modules with ceil-mode pooling, a convolution as the classifier."""

    def __init__(self):
        super().__init__()
        self.stem, self.squeeze = nn.Conv2d(3, 24, 3, 2), nn.Conv2d(24, 8, 1)
        self.one, self.three = nn.Conv2d(8, 16, 1), nn.Conv2d(8, 16, 3, padding=1)
        self.classes = nn.Conv2d(32, 5, 1)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.stem(x)), 2, ceil_mode=True)
        x = F.relu(self.squeeze(x))
        x = torch.cat([F.relu(self.one(x)), F.relu(self.three(x))], 1)
        return F.relu(self.classes(x)).mean((2, 3))


@graph(IMAGE, IMAGE)
class Correlation(nn.Module):
    """Optical flow: products of shifted features, summed over the channels."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 24, 3, padding=1)
        self.c, self.flow = nn.Conv2d(33, 24, 3, padding=1), nn.Conv2d(24, 2, 3, padding=1)

    def forward(self, x, y):
        x, y = (F.relu(self.b(F.relu(self.a(t)))) for t in (x, y))
        padded = F.pad(y, (1, 1, 1, 1))
        costs = [(x * padded[:, :, i:i + 8, j:j + 8]).mean(1, keepdim=True)
                 for i in range(3) for j in range(3)]  # fmt: skip
        return self.flow(F.relu(self.c(torch.cat([*costs, x], 1))))


@graph(IMAGE)
class NonLocal(nn.Module):
    """Every place attends to every other; pooled keys; a double attention over space."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 20, 3, padding=1)
        self.theta, self.phi, self.g = (nn.Conv2d(20, 12, 1) for _ in range(3))
        self.w, self.head = nn.Conv2d(12, 20, 1), nn.Linear(20, 4)

    def forward(self, x):
        x = F.relu(self.stem(x))
        n, _, h, w = x.shape
        theta = self.theta(x).flatten(2).transpose(1, 2)
        phi = F.max_pool2d(self.phi(x), 2).flatten(2)
        g = F.max_pool2d(self.g(x), 2).flatten(2).transpose(1, 2)
        y = torch.bmm(torch.bmm(theta, phi).softmax(-1), g)
        y = y.permute(0, 2, 1).reshape(n, -1, h, w)
        return self.head((x + self.w(y)).mean((2, 3)))


@graph(real(N, 12))
class KolmogorovArnold(nn.Module):
    """Each feature expanded by Gaussian bumps, then summed by one matrix."""

    def __init__(self):
        super().__init__()
        self.enter = nn.Linear(12, 16)
        self.register_buffer("centres", torch.linspace(-2, 2, 5))
        self.mix, self.base, self.out = nn.Linear(80, 24), nn.Linear(16, 24), nn.Linear(24, 3)

    def forward(self, x):
        x = self.enter(x)
        bumps = torch.exp(-((x[..., None] - self.centres) ** 2))
        return self.out(torch.tanh(self.mix(bumps.flatten(1)) + self.base(F.silu(x))))


@graph(real(N, 3))
class Coordinates(nn.Module):
    """A neural field: sines and cosines of coordinates, a skip into the middle (NeRF)."""

    def __init__(self):
        super().__init__()
        self.register_buffer("rates", 2.0 ** torch.arange(4))
        self.a, self.b, self.c = nn.Linear(27, 40), nn.Linear(40, 40), nn.Linear(67, 40)
        self.density, self.colour = nn.Linear(40, 1), nn.Linear(40, 3)

    def forward(self, x):
        angles = (x[:, :, None] * self.rates).flatten(1)
        x = torch.cat([x, angles.sin(), angles.cos()], -1)
        h = F.relu(self.b(F.relu(self.a(x))))
        h = F.relu(self.c(torch.cat([x, h], -1)))
        return F.softplus(self.density(h)), torch.sigmoid(self.colour(h))


@graph(real(N, 4, 12))
class TwoTowers(nn.Module):
    """CLIP-like: two encoders compared by a product of their outputs."""

    def __init__(self):
        super().__init__()
        self.left = nn.Sequential(nn.Linear(12, 32), nn.GELU(), nn.Linear(32, 20))
        self.right = nn.Sequential(nn.Linear(12, 28), nn.ReLU(), nn.Linear(28, 20))
        self.scale = nn.Parameter(torch.tensor(0.3))

    def forward(self, x):
        left, right = self.left(x).mean(1), self.right(x[:, :2]).amax(1)
        return self.scale.exp() * left @ right.t()


@graph(real(N, 3, 16))
class VectorQuantizer(nn.Module):
    """Nearest code by distance, looked up, straight through; then a decoder."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv1d(3, 24, 4, 2, 1), nn.Conv1d(24, 12, 3, 1, 1)
        self.codes = nn.Embedding(20, 12)
        self.c, self.d = nn.Conv1d(12, 24, 3, 1, 1), nn.ConvTranspose1d(24, 3, 4, 2, 1)

    def forward(self, x):
        z = self.b(F.relu(self.a(x))).transpose(1, 2)
        flat = z.reshape(-1, 12)
        distance = flat.pow(2).sum(1, keepdim=True) - 2 * flat @ self.codes.weight.t()
        distance = distance + self.codes.weight.pow(2).sum(1)
        q = self.codes(distance.argmin(1)).view(z.shape)
        q = z + (q - z).detach()
        return self.d(F.relu(self.c(q.transpose(1, 2))))
