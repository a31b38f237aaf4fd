"""A histogram whose bins stay aligned while its range grows, and ranges that are read from it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from engine.quantization.observers.base import Observer, is_distributed

#: Bins on each side of zero. The largest value lies in the outer half: at least 16 bins for each
#: of 256 levels.
BINS = 8192


class Histogram(Observer):
    """Counts values in bins of equal width over [-2^e, 2^e].

    When a value lies outside, e grows and neighbouring bins become one: counts are exact whatever
    the order of batches, and those of several processes can be added up. Zeros are counted by
    themselves, since zero is on every grid.

    Attributes:
        counts: float64 (2 * BINS,), without zeros.
        zeros: float64 (), how many values were 0.
        exponent: float64 (), e; -infinity before a value other than 0.
    """

    counts: Tensor
    zeros: Tensor
    exponent: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("counts", torch.zeros(2 * BINS, dtype=torch.float64))
        self.register_buffer("zeros", torch.zeros((), dtype=torch.float64))
        self.register_buffer("exponent", torch.tensor(-math.inf, dtype=torch.float64))

    def take(self, tensor: Tensor, extremes: Tensor) -> None:
        """Count ``tensor``."""
        low, high = extremes.tolist()
        least, most = torch.fmin(self.range[0], extremes[0]), torch.fmax(self.range[1], extremes[1])
        self.range.copy_(torch.stack((least, most)))
        if largest := max(-low, high):
            # Widths that float32 has as normal numbers, ends that are finite in it.
            self._grow(min(max(math.frexp(largest)[1], -100), 127))
            # Exact, since bins are powers of two wide (torch.histc rounds at their edges); in
            # float64, where the smallest float32 does not become 0.
            place = (tensor.flatten().double() * (BINS / 2.0 ** float(self.exponent))).floor_()
            place = place.clamp_(-BINS, BINS - 1).to(torch.int64).add_(BINS)
            zeros = tensor.numel() - torch.count_nonzero(tensor)
            self.counts += torch.bincount(place, minlength=2 * BINS)
            self.counts[BINS] -= zeros  # the bin that begins at 0
            self.zeros += zeros
        else:
            self.zeros += tensor.numel()

    def bins(self) -> tuple[Tensor, Tensor]:
        """Return the middles and counts, float64, of the bins that hold anything but zeros."""
        used = self.counts.nonzero().flatten()
        width = 2.0 ** float(self.exponent) / BINS
        middles = (used.double() - BINS + 0.5) * width
        # No middle beyond what was seen: a lone value then is its own extreme.
        return middles.clamp(*self.range.double().tolist()), self.counts[used]

    def synchronize(self) -> None:
        """Add up the counts of all processes."""
        super().synchronize()
        if is_distributed():
            largest = self.exponent.clone()
            torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX)
            self._grow(float(largest))
            for counts in (self.counts, self.zeros):
                torch.distributed.all_reduce(counts)

    def _grow(self, exponent: float) -> None:
        """Let the bins reach to 2^``exponent``, if they do not yet."""
        now = float(self.exponent)
        if exponent <= now:
            return
        if math.isfinite(now):
            merged = int(2 ** min(exponent - now, math.log2(2 * BINS)))
            place = torch.arange(-BINS, BINS, device=self.counts.device)
            target = torch.div(place, merged, rounding_mode="floor") + BINS
            self.counts.copy_(torch.zeros_like(self.counts).index_add_(0, target, self.counts))
        self.exponent.fill_(exponent)
