"""A range that leaves a fixed part of the values out."""

from __future__ import annotations

import torch
from torch import Tensor

from engine.quantization.observers.histogram import BINS, Histogram
from engine.quantization.scheme import Scheme


class Percentile(Histogram):
    """The range between two percentiles: ``100 - percentile`` and ``percentile``.

    Zeros count as values. Percentiles are exact to a bin of the histogram.

    Args:
        percentile: 50 < percentile <= 100; 100 is the smallest to the largest value.

    Raises:
        ValueError: another ``percentile``.
    """

    name = "percentile"

    def __init__(self, percentile: float = 99.99) -> None:
        super().__init__()
        if not 50 < percentile <= 100:
            raise ValueError(f"percentile is {percentile}; needed: 50 < percentile <= 100")
        self.percentile = percentile

    def limits(self, scheme: Scheme) -> tuple[Tensor, Tensor]:
        """Return the two percentiles."""
        middles, counts = self.bins()
        if not middles.numel():
            return super().limits(scheme)
        split = int((middles < 0).sum())
        zero = middles.new_zeros(1)
        middles = torch.cat((middles[:split], zero, middles[split:]))
        below = torch.cat((counts[:split], self.zeros.view(1), counts[split:])).cumsum(0)
        left_out = float(below[-1]) * (1 - self.percentile / 100)
        # Half a count of tolerance: 1 - 0.9999 is no exact number.
        low = middles[int(torch.searchsorted(below, left_out, right=True))]
        place = int(torch.searchsorted(below, float(below[-1]) - left_out - 1e-6))
        high = middles[min(place, len(middles) - 1)]
        half = 0.5 * 2.0 ** float(self.exponent) / BINS
        smallest, largest = self.range.double().tolist()
        low, high = low - half * (low != 0), high + half * (high != 0)
        return low.clamp(smallest, largest).float(), high.clamp(smallest, largest).float()
