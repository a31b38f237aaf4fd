"""Whole small vision models of one block each."""

import torch
from torch import nn
from torch.nn import functional as F

from graphs.registry import N, graph, real

IMAGE = real(N, 3, 12, 12)


@graph(IMAGE)
class InvertedResidual(nn.Module):
    """MobileNetV3: expand, depthwise, squeeze-excite, project, add."""

    def __init__(self):
        super().__init__()
        self.stem, self.n0 = nn.Conv2d(3, 12, 3, 2, 1, bias=False), nn.BatchNorm2d(12)
        self.expand, self.n1 = nn.Conv2d(12, 40, 1, bias=False), nn.BatchNorm2d(40)
        self.depth, self.n2 = nn.Conv2d(40, 40, 5, 1, 2, groups=40, bias=False), nn.BatchNorm2d(40)
        self.se1, self.se2 = nn.Conv2d(40, 10, 1), nn.Conv2d(10, 40, 1)
        self.project, self.n3 = nn.Conv2d(40, 12, 1, bias=False), nn.BatchNorm2d(12)
        self.head = nn.Linear(12, 4)

    def forward(self, x):
        x = F.hardswish(self.n0(self.stem(x)))
        y = F.hardswish(self.n1(self.expand(x)))
        y = F.hardswish(self.n2(self.depth(y)))
        gate = F.hardsigmoid(self.se2(F.relu(self.se1(F.adaptive_avg_pool2d(y, 1)))))
        return self.head((x + self.n3(self.project(y * gate))).mean((2, 3)))


@graph(IMAGE)
class Yolo(nn.Module):
    """CSP bottlenecks, SPPF, concatenation, boxes by views with literal anchors."""

    def __init__(self):
        super().__init__()
        self.stem, self.cv1 = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 24, 1)
        self.m1, self.m2 = nn.Conv2d(12, 12, 3, 1, 1), nn.Conv2d(12, 12, 3, 1, 1)
        self.cv2, self.spp = nn.Conv2d(36, 20, 1), nn.Conv2d(80, 24, 1)
        self.detect = nn.Conv2d(24, 3 * 7, 1)

    def forward(self, x):
        y = list(F.silu(self.cv1(F.silu(self.stem(x)))).chunk(2, 1))
        y.append(y[-1] + F.silu(self.m2(F.silu(self.m1(y[-1])))))
        x = [F.silu(self.cv2(torch.cat(y, 1)))]
        for _ in range(3):
            x.append(F.max_pool2d(x[-1], 5, 1, 2))
        x = self.detect(F.silu(self.spp(torch.cat(x, 1))))
        n, _, h, w = x.shape
        x = x.view(n, 3, 7, h, w).permute(0, 1, 3, 4, 2).contiguous()
        return torch.cat((x[..., :2].sigmoid() * 2, x[..., 2:4].exp(), x[..., 4:].sigmoid()), -1)


@graph(IMAGE, real(N))
class Diffusion(nn.Module):
    """A U-Net with a time embedding added per channel, group norms and attention."""

    def __init__(self):
        super().__init__()
        self.time = nn.Sequential(nn.Linear(8, 32), nn.SiLU(), nn.Linear(32, 24))
        self.enter, self.norm = nn.Conv2d(3, 24, 3, 1, 1), nn.GroupNorm(4, 24)
        self.down, self.mid = nn.Conv2d(24, 24, 3, 2, 1), nn.Conv2d(24, 24, 3, 1, 1)
        self.qkv, self.proj = nn.Conv1d(24, 72, 1), nn.Conv1d(24, 24, 1)
        self.up, self.out = nn.Conv2d(48, 16, 3, 1, 1), nn.Conv2d(16, 3, 3, 1, 1)

    def forward(self, x, t):
        angle = t[:, None] * 10 ** -torch.linspace(0, 1, 4, dtype=x.dtype)
        emb = self.time(torch.cat([angle.sin(), angle.cos()], 1))
        first = self.enter(x)
        h = self.mid(F.silu(self.norm(self.down(first) + emb[:, :, None, None])))
        b, c, *size = h.shape
        q, k, v = self.qkv(h.flatten(2)).reshape(b * 4, 3 * c // 4, -1).split(c // 4, dim=1)
        weights = torch.einsum("bct,bcs->bts", q * 0.4, k).softmax(-1)
        h = h + self.proj(torch.einsum("bts,bcs->bct", weights, v).reshape(b, c, -1)).view(
            b, c, *size
        )
        h = F.interpolate(h, scale_factor=2, mode="nearest")
        return self.out(F.silu(self.up(torch.cat([h, first], 1))))


@graph(IMAGE)
class Involution(nn.Module):
    """Kernels from each pixel, shared by groups of channels, applied to unfolded patches."""

    def __init__(self):
        super().__init__()
        self.stem, self.reduce, self.span = (
            nn.Conv2d(3, 16, 3),
            nn.Conv2d(16, 12, 1),
            nn.Conv2d(12, 36, 1),
        )
        self.last, self.head = nn.Conv2d(16, 32, 3), nn.Linear(32, 4)

    def forward(self, x):
        x = F.relu(self.stem(x))
        n, c, h, w = x.shape
        weight = self.span(F.relu(self.reduce(x))).view(n, 4, 9, h, w).unsqueeze(2)
        patches = F.unfold(x, 3, padding=1).view(n, 4, c // 4, 9, h, w)
        x = (weight * patches).sum(3).view(n, c, h, w)
        return self.head(F.relu(self.last(x)).mean((2, 3)))


@graph(IMAGE, shortfall="a convolution whose groups are the batch")
class StyleModulation(nn.Module):
    """StyleGAN2: weights scaled by a style and normalized per sample, groups over the batch."""

    def __init__(self):
        super().__init__()
        self.stem, self.style = nn.Conv2d(3, 16, 3, 1, 1), nn.Linear(16, 16)
        self.weight, self.noise = (
            nn.Parameter(torch.randn(20, 16, 3, 3)),
            nn.Parameter(torch.randn(1)),
        )
        self.last = nn.Conv2d(20, 3, 1)

    def forward(self, x):
        x = F.leaky_relu(self.stem(x), 0.2)
        n, _, h, w = x.shape
        style = self.style(x.mean((2, 3)))
        weight = self.weight[None] * (style[:, None, :, None, None] + 1)
        weight = weight * torch.rsqrt(weight.square().sum((2, 3, 4), keepdim=True) + 1e-8)
        x = F.conv2d(x.reshape(1, -1, h, w), weight.flatten(0, 1), padding=1, groups=n)
        return self.last(F.leaky_relu(x.view(n, -1, h, w) + self.noise, 0.2))


@graph(IMAGE)
class Res2Net(nn.Module):
    """Split into four, each part added to the next one's input, concatenated again."""

    def __init__(self):
        super().__init__()
        self.stem, self.one = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 32, 1)
        self.convs = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))
        self.three, self.head = nn.Conv2d(32, 16, 1), nn.Linear(16, 4)

    def forward(self, x):
        x = F.relu(self.stem(x))
        parts = torch.split(F.relu(self.one(x)), 8, 1)
        last, out = 0, []
        for conv, part in zip(self.convs, parts, strict=False):
            last = F.relu(conv(part + last))
            out.append(last)
        return self.head(F.relu(x + self.three(torch.cat([*out, parts[3]], 1))).mean((2, 3)))
