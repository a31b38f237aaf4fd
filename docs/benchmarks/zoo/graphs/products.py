"""Products and distances between channels, losses inside the model, linear algebra."""

import torch
from torch import nn
from torch.nn import functional as F

from graphs.registry import N, graph, real, whole

IMAGE = real(N, 3, 8, 8)
ROWS = real(N, 12)


@graph(IMAGE)
class GramMatrix(nn.Module):
    """Bilinear pooling: products of all pairs of channels, flattened into a linear layer."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 12, 3)
        self.head = nn.Linear(144, 4)

    def forward(self, x):
        x = F.relu(self.b(F.relu(self.a(x)))).flatten(2)
        x = torch.bmm(x, x.transpose(1, 2)) / x.shape[2]
        return self.head(x.flatten(1))


@graph(IMAGE, shortfall="the code divides by the number of channels")
class ShapeInFormula(nn.Module):
    """Statistics divided by ``x.shape[1]``, scores by the square root of ``q.size(-1)``."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 24, 3), nn.Conv2d(24, 40, 1)
        self.q, self.k, self.head = nn.Linear(40, 20), nn.Linear(40, 20), nn.Linear(40, 4)

    def forward(self, x):
        x = self.a(x)
        x = x / (1 + x.abs().sum(1, keepdim=True) / x.shape[1])
        x = F.relu(self.b(x)).flatten(2).transpose(1, 2)
        q, k = self.q(x), self.k(x)
        return self.head(((q @ k.mT) / q.size(-1) ** 0.5).softmax(-1) @ x).mean(1)


@graph(ROWS, shortfall="distances to learned centres have no rule")
class RadialBasis(nn.Module):
    """Distances to centres by cdist, and pairwise distances and cosines of two branches."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(12, 32), nn.Linear(12, 32)
        self.centres, self.head = nn.Parameter(torch.randn(10, 32)), nn.Linear(13, 4)

    def forward(self, x):
        a, b = torch.tanh(self.a(x)), torch.tanh(self.b(x))
        near = torch.exp(-torch.cdist(a, self.centres) / 8)
        more = [F.pairwise_distance(a, b), F.cosine_similarity(a, b), (a * b).sum(-1)]
        return self.head(torch.cat([near, torch.stack(more, 1)], 1))


@graph(ROWS, whole(4, N))
class LossInside(nn.Module):
    """The model returns its loss beside the logits: cross entropy and a few others."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(12, 32), nn.Linear(32, 24), nn.Linear(24, 4)

    def forward(self, x, target):
        x = F.relu(self.a(x))
        hidden = self.b(x)
        logits = self.head(F.relu(hidden))
        loss = (
            F.cross_entropy(logits, target, label_smoothing=0.1)
            + 0.01 * hidden.pow(2).sum(1).mean()
        )
        loss = loss + F.smooth_l1_loss(logits[:, 0], x.sum(1)) + F.mse_loss(x.amax(1), logits[:, 1])
        return loss, logits


@graph(ROWS)
class Tensordots(nn.Module):
    """tensordot, outer products by broadcasting, addmv, inner, kron, chains of products."""

    def __init__(self):
        super().__init__()
        self.a, self.core = nn.Linear(12, 20), nn.Parameter(torch.randn(20, 5, 24) / 9)
        self.small, self.vector = nn.Linear(12, 5), nn.Parameter(torch.randn(24))
        self.u, self.v = nn.Parameter(torch.randn(24, 6) / 5), nn.Parameter(torch.randn(6, 30) / 3)
        self.head = nn.Linear(30, 4)

    def forward(self, x):
        y = torch.tensordot(torch.tanh(self.a(x)), self.core, dims=([1], [0]))
        y = (y * self.small(x)[:, :, None]).sum(1)
        score = y @ self.vector
        y = torch.linalg.multi_dot([y, self.u, self.v])
        return self.head(F.relu(y)) + score[:, None]


@graph(ROWS)
class LinearAlgebra(nn.Module):
    """A system that is solved, a matrix exponential, an orthogonal layer."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(12, 36), nn.Linear(36, 16), nn.Linear(8, 3)
        self.skew = nn.Parameter(torch.randn(4, 4) / 3)
        self.turn = nn.utils.parametrizations.orthogonal(nn.Linear(4, 4, bias=False))

    def forward(self, x):
        x = torch.tanh(self.b(torch.tanh(self.a(x)))).view(-1, 4, 4)
        x = torch.linalg.solve(x @ x.mT + torch.eye(4, dtype=x.dtype), x)
        x = x @ torch.matrix_exp(self.skew - self.skew.t())
        return self.head(torch.cat([self.turn(x).sum(1), x.diagonal(dim1=1, dim2=2)], 1))


@graph(ROWS)
class Mixture(nn.Module):
    """A density network: logsumexp over components, some rows gathered by their argmax."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(12, 40), nn.Linear(40, 30)
        self.pi, self.mu = nn.Linear(30, 5), nn.Linear(30, 20)

    def forward(self, x):
        h = F.relu(self.b(F.relu(self.a(x))))
        log_pi, mu = self.pi(h).log_softmax(-1), self.mu(h).view(-1, 5, 4)
        best = mu.gather(1, log_pi.argmax(1)[:, None, None].expand(-1, 1, 4)).squeeze(1)
        return torch.logsumexp(log_pi - mu.pow(2).sum(-1), dim=1), best


@graph(real(N, 64))
class Spectrogram(nn.Module):
    """A short-time Fourier transform, magnitudes as channels, convolutions over time."""

    def __init__(self):
        super().__init__()
        self.register_buffer("window", torch.hann_window(16))
        self.a, self.norm, self.b = nn.Conv1d(9, 24, 3), nn.BatchNorm1d(24), nn.Conv1d(24, 32, 3)
        self.head = nn.Linear(32, 4)

    def forward(self, x):
        x = torch.stft(x, 16, hop_length=4, window=self.window.to(x.dtype), return_complex=True)
        x = self.b(F.relu(self.norm(self.a(torch.log1p(x.abs())))))
        return self.head(F.relu(x).mean(-1))


@graph(ROWS)
class ComplexWeights(nn.Module):
    """A layer of complex numbers made from two real ones, its magnitude and phase used."""

    def __init__(self):
        super().__init__()
        self.re, self.im, self.b = nn.Linear(12, 24), nn.Linear(12, 24), nn.Linear(48, 32)
        self.head = nn.Linear(32, 4)

    def forward(self, x):
        z = torch.complex(self.re(x), self.im(x))
        z = z * z.conj() + z
        return self.head(F.relu(self.b(torch.cat([z.real, z.imag.tanh()], 1))))
