"""Small models whose counts and dependencies can be worked out by hand."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Residual(nn.Module):
    """For images (n, 3, s, s): ``stem`` and ``b`` are added, so their channels go together."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.a = nn.Conv2d(8, 6, 3, padding=1)
        self.b = nn.Conv2d(6, 8, 3, padding=1)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        return self.head((x + self.b(F.relu(self.a(x)))).mean((2, 3)))


class Grouped(nn.Module):
    """``grouped`` has 4 groups, of 2 inputs and 3 outputs each; ``depthwise`` 12."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 1)
        self.grouped = nn.Conv2d(8, 12, 3, groups=4)
        self.depthwise = nn.Conv2d(12, 12, 3, groups=12)
        self.last = nn.Conv2d(12, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.depthwise(F.relu(self.grouped(self.first(x)))))


class Everything(nn.Module):
    """Operators of every kind that are counted, functional ones and a layer used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, dilation=2)
        self.grouped = nn.Conv2d(8, 12, 3, groups=4, stride=2)
        self.depthwise = nn.Conv2d(12, 24, 3, groups=12, padding=1)
        self.up = nn.ConvTranspose2d(24, 6, 3, stride=2, groups=2)
        self.signal = nn.Conv1d(6, 8, 3)
        self.mix = nn.Linear(8, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.table = nn.Parameter(torch.randn(5, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(F.gelu(self.depthwise(self.grouped(self.conv(x)))))
        x = self.mix(self.signal(x.flatten(2)).transpose(1, 2))
        x = self.mix(torch.tanh(x))
        x = self.attention(x, x, x, need_weights=False)[0]
        heads = x.unflatten(2, (2, 4)).transpose(1, 2)
        x = F.scaled_dot_product_attention(heads, heads, heads).transpose(1, 2).flatten(2)
        return torch.einsum("bnd,kd->bnk", x, self.table) @ torch.ones(5, 2)
