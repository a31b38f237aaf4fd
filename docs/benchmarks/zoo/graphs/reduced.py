"""Pooling of every kind, reductions over channels, Fourier transforms, changes of precision."""

import torch
from torch import nn
from torch.nn import functional as F

from graphs.registry import N, graph, real

IMAGE = real(N, 3, 12, 12)


@graph(IMAGE)
class Poolings(nn.Module):
    """Max, average, adaptive, LP, fractional and unpooling with indices."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (
            nn.Conv2d(3, 16, 3, 1, 1),
            nn.Conv2d(16, 24, 3, 1, 1),
            nn.Conv2d(24, 24, 1),
        )
        self.lp, self.head = nn.LPPool2d(2, 2), nn.Linear(24, 4)

    def forward(self, x):
        x, index = F.max_pool2d(self.a(x), 2, return_indices=True)
        x = F.max_unpool2d(F.relu(x), index, 2)
        x = F.avg_pool2d(F.relu(self.b(x)), 3, 1, 1, count_include_pad=False)
        x = self.lp(x) + F.adaptive_max_pool2d(x, 6) + F.adaptive_avg_pool2d(x, 6)
        return self.head(F.relu(self.c(x)).logsumexp((2, 3)))


@graph(IMAGE)
class PyramidPooling(nn.Module):
    """SPP: pooled to several sizes, flattened and concatenated, then a linear layer."""

    def __init__(self):
        super().__init__()
        self.conv, self.mid = nn.Conv2d(3, 16, 3), nn.Linear(16 * 14, 32)
        self.head = nn.Linear(32, 4)

    def forward(self, x):
        x = F.relu(self.conv(x))
        x = torch.cat([F.adaptive_max_pool2d(x, k).flatten(1) for k in (1, 2, 3)], 1)
        return self.head(F.relu(self.mid(x)))


@graph(IMAGE)
class GlobalStatistics(nn.Module):
    """Mean and standard deviation over space (x-vectors), minima, products, norms."""

    def __init__(self):
        super().__init__()
        self.conv, self.mid = nn.Conv2d(3, 16, 3), nn.Linear(64, 32)
        self.head = nn.Linear(32, 4)

    def forward(self, x):
        x = torch.tanh(self.conv(x)).flatten(2)
        x = torch.cat([x.mean(2), x.std(2), x.amin(2), x.norm(dim=2)], dim=1)
        return self.head(F.relu(self.mid(x)))


@graph(IMAGE)
class OverChannels(nn.Module):
    """Mean, maximum and sum over the channels beside the channels themselves."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 24, 3), nn.Conv2d(27, 32, 3), nn.Linear(32, 4)

    def forward(self, x):
        x = F.relu(self.a(x))
        more = [x.mean(1, True), x.amax(1, True), x.pow(2).sum(1, True)]
        return self.head(F.relu(self.b(torch.cat([x, *more], 1))).mean((2, 3)))


@graph(IMAGE)
class Fourier(nn.Module):
    """FFT over space, a filter per channel in the frequency domain (GFNet), and back."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = (
            nn.Conv2d(3, 16, 3, 1, 1),
            nn.Conv2d(16, 32, 3),
            nn.Linear(32, 4),
        )
        self.filter = nn.Parameter(torch.randn(16, 12, 7, 2))

    def forward(self, x):
        x = F.relu(self.a(x))
        spectrum = torch.fft.rfft2(x, norm="ortho") * torch.view_as_complex(self.filter)
        x = torch.fft.irfft2(spectrum, s=x.shape[2:], norm="ortho")
        return self.head(F.relu(self.b(x)).mean((2, 3)))


@graph(real(N, 8, 16))
class FourierMixing(nn.Module):
    """FNet: a Fourier transform over tokens and features in place of attention."""

    def __init__(self):
        super().__init__()
        self.up, self.down, self.head = nn.Linear(16, 48), nn.Linear(48, 16), nn.Linear(16, 3)

    def forward(self, x):
        x = x + torch.fft.fft(torch.fft.fft(x, dim=-1), dim=-2).real
        return self.head(x + self.down(F.gelu(self.up(x))))


@graph(IMAGE)
class OtherPrecision(nn.Module):
    """Softmax in float32 inside a float64 model, a cast to half and back for a gate."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 24, 3), nn.Conv2d(24, 32, 3), nn.Linear(32, 4)

    def forward(self, x):
        x = F.relu(self.a(x))
        gate = (x.mean((2, 3), keepdim=True) > 0).half().to(x.dtype)
        place = x.float().flatten(2).softmax(-1).to(x.dtype).view_as(x)
        return self.head(F.relu(self.b(x * gate + place)).mean((2, 3)))


@graph(IMAGE)
class Differences(nn.Module):
    """Sobel filters that are fixed buffers, applied to each channel; Laplacian pyramid."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 20, 3), nn.Conv2d(40, 24, 3), nn.Linear(24, 4)
        kernel = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16
        self.register_buffer("blur", kernel.expand(20, 1, 3, 3).clone())

    def forward(self, x):
        x = F.relu(self.a(x))
        blurred = F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), self.blur, groups=x.shape[1])
        return self.head(F.relu(self.b(torch.cat([blurred, x - blurred], 1))).mean((2, 3)))


@graph(IMAGE)
class SpatialTransformer(nn.Module):
    """A grid that is predicted from the image and sampled from its features."""

    def __init__(self):
        super().__init__()
        self.find, self.theta = nn.Conv2d(3, 16, 5, 2), nn.Linear(16, 6)
        self.a, self.b, self.head = nn.Conv2d(3, 20, 3), nn.Conv2d(20, 24, 3), nn.Linear(24, 4)

    def forward(self, x):
        theta = self.theta(F.relu(self.find(x)).mean((2, 3))).view(-1, 2, 3)
        x = F.relu(self.a(x))
        grid = F.affine_grid(theta, list(x.shape), align_corners=False)
        return self.head(F.relu(self.b(F.grid_sample(x, grid, align_corners=False))).mean((2, 3)))


@graph(IMAGE)
class SpectralConvolution(nn.Module):
    """A Fourier neural operator's layer: places in and out of a spectrum, by channel."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 32, 1), nn.Conv2d(32, 32, 1), nn.Conv2d(32, 4, 1)

    def forward(self, x):
        x = F.relu(self.a(x))
        spectrum = torch.fft.rfft2(x)
        low = torch.fft.ifft(torch.fft.fft(x, dim=2), dim=2).real
        x = torch.fft.irfft2(spectrum * (spectrum.abs() > 1), s=x.shape[2:]) + low
        return self.c(F.relu(self.b(x)))
