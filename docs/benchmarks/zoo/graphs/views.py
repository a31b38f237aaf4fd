"""Views whose sizes are attributes, literals, or arithmetic on shapes."""

import torch
from torch import nn
from torch.nn import functional as F

from graphs.registry import N, graph, real

IMAGE = real(N, 3, 6, 6)


@graph(IMAGE)
class FlattenConvolution(nn.Module):
    """The old VGG end: channels and positions flattened into a linear layer."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 16, 3)
        self.c, self.head = nn.Linear(16 * 2 * 2, 32), nn.Linear(32, 4)

    def forward(self, x):
        x = F.relu(self.b(F.relu(self.a(x))))
        return self.head(F.relu(self.c(torch.flatten(x, 1))))


@graph(IMAGE)
class FlattenLiteral(nn.Module):
    """The same with the size in the code: ``view(-1, 64)``."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 16, 3)
        self.c, self.head = nn.Linear(64, 32), nn.Linear(32, 4)

    def forward(self, x):
        x = F.relu(self.b(F.relu(self.a(x))))
        return self.head(F.relu(self.c(x.view(-1, 64))))


@graph(IMAGE)
class FlattenAttribute(nn.Module):
    """The size is an attribute that is no layer's: ``self.flat``."""

    def __init__(self):
        super().__init__()
        self.flat = 16 * 2 * 2
        self.a, self.b = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 16, 3)
        self.c, self.head = nn.Linear(self.flat, 32), nn.Linear(32, 4)

    def forward(self, x):
        x = F.relu(self.b(F.relu(self.a(x))))
        return self.head(F.relu(self.c(x.reshape(x.shape[0], self.flat))))


@graph(IMAGE)
class FlattenArithmetic(nn.Module):
    """The size is computed from several attributes and a shape."""

    def __init__(self):
        super().__init__()
        self.config = {"width": 16, "side": 2}
        self.a, self.b = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 16, 3)
        self.c, self.head = nn.Linear(64, 32), nn.Linear(32, 4)

    def forward(self, x):
        x = F.relu(self.b(F.relu(self.a(x))))
        size = self.config["width"] * self.config["side"] ** 2
        return self.head(F.relu(self.c(x.view(x.numel() // size, size))))


@graph(IMAGE)
class Unflatten(nn.Module):
    """A decoder: a linear layer unflattened into channels and positions."""

    def __init__(self):
        super().__init__()
        self.enter, self.mid = nn.Conv2d(3, 8, 6), nn.Linear(8, 16 * 3 * 3)
        self.unflatten = nn.Unflatten(1, (16, 3, 3))
        self.up, self.out = nn.ConvTranspose2d(16, 12, 2, 2), nn.Conv2d(12, 3, 3, padding=1)

    def forward(self, x):
        x = F.relu(self.mid(F.relu(self.enter(x)).flatten(1)))
        return self.out(F.relu(self.up(self.unflatten(x))))


@graph(IMAGE)
class UnflattenLiteral(nn.Module):
    """The same with literals in a view."""

    def __init__(self):
        super().__init__()
        self.enter, self.mid = nn.Conv2d(3, 8, 6), nn.Linear(8, 144)
        self.up, self.out = nn.ConvTranspose2d(16, 12, 2, 2), nn.Conv2d(12, 3, 3, padding=1)

    def forward(self, x):
        x = F.relu(self.mid(F.relu(self.enter(x)).flatten(1)))
        return self.out(F.relu(self.up(x.view(-1, 16, 3, 3))))


@graph(real(N, 12))
class LiteralHeads(nn.Module):
    """Groups of features with the number of groups in the code, normalized per group."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(12, 32), nn.Linear(32, 40), nn.Linear(40, 4)

    def forward(self, x):
        x = F.relu(self.a(x)).view(-1, 4, 8)
        x = x.transpose(1, 2).reshape(-1, 32)
        return self.c(F.relu(self.b(x)))


@graph(IMAGE)
class Squeezes(nn.Module):
    """squeeze, unsqueeze, None-indexing, permutes to channels last and back, movedim."""

    def __init__(self):
        super().__init__()
        self.a, self.lin = nn.Conv2d(3, 16, 3), nn.Linear(16, 24)
        self.b, self.head = nn.Conv2d(24, 16, 4), nn.Linear(16, 4)

    def forward(self, x):
        x = F.relu(self.a(x)).permute(0, 2, 3, 1)
        x = torch.movedim(F.relu(self.lin(x)), -1, 1)
        x = self.b(x).squeeze(-1).squeeze(2)
        return self.head(F.relu(x[:, None, :].squeeze(1).unsqueeze(0)[0]))


@graph(real(N, 3, 8, 8))
class Patches(nn.Module):
    """Patches cut by a view of six dimensions, as einops would do it, and put back."""

    def __init__(self):
        super().__init__()
        self.stem, self.embed = nn.Conv2d(3, 6, 1), nn.Linear(6 * 16, 40)
        self.back, self.out = nn.Linear(40, 96), nn.Conv2d(6, 2, 1)

    def forward(self, x):
        x = self.stem(x)
        n, c, h, w = x.shape
        x = x.reshape(n, c, h // 4, 4, w // 4, 4).permute(0, 2, 4, 3, 5, 1).reshape(n, -1, 16 * c)
        x = self.back(F.gelu(self.embed(x)))
        x = x.view(n, h // 4, w // 4, 4, 4, c).permute(0, 5, 1, 3, 2, 4).reshape(n, c, h, w)
        return self.out(x)


@graph(IMAGE)
class MergedBatch(nn.Module):
    """Channels merged into the batch and back: each channel is an image of its own."""

    def __init__(self):
        super().__init__()
        self.a, self.each = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(1, 6, 3, padding=1)
        self.join, self.b, self.head = nn.Conv2d(6, 1, 1), nn.Conv2d(16, 32, 3), nn.Linear(32, 4)

    def forward(self, x):
        x = F.relu(self.a(x))
        n, c, h, w = x.shape
        x = self.join(F.relu(self.each(x.reshape(n * c, 1, h, w)))).view(n, c, h, w)
        return self.head(F.relu(self.b(x)).mean((2, 3)))
