"""Ranges that make the rounded values of a histogram most like what they were."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from engine.quantization.affine import dequantize, quantize
from engine.quantization.observers.histogram import BINS, Histogram
from engine.quantization.scheme import Scheme

#: Fractions of each end of the range that are tried, the whole end first.
_FRACTIONS = 100


class Search(Histogram):
    """Tries narrower ranges and takes the one that :meth:`cost` is least for.

    Symmetric: both ends are narrowed together. Affine: together first, then the upper and the lower
    end by themselves. Of equal costs the wider range counts.
    """

    @abstractmethod
    def cost(
        self, middles: Tensor, counts: Tensor, low: Tensor, high: Tensor, scheme: Scheme
    ) -> Tensor:
        """Return float64 (n,), the cost of each of n ranges ``low``, ``high`` (n,).

        ``middles`` and ``counts``, float64 (bins,), are the histogram without zeros, not empty.
        """

    def limits(self, scheme: Scheme) -> tuple[Tensor, Tensor]:
        """Return the range of least cost."""
        middles, counts = self.bins()
        low, high = self.range[0], self.range[1]
        if not middles.numel():
            return low, high
        fractions = torch.linspace(1, 1 / _FRACTIONS, _FRACTIONS, device=low.device)
        whole = torch.ones(())
        moves = [(fractions, fractions)]
        if not scheme.symmetric:
            moves += [(whole, fractions), (fractions, whole)] * 2
        for of_low, of_high in moves:
            lows, highs = (low * of_low).expand(_FRACTIONS), (high * of_high).expand(_FRACTIONS)
            best = self.cost(middles, counts, lows, highs, scheme).argmin()
            low, high = lows[best], highs[best]
        return low, high


class MSE(Search):
    """The range of least mean squared rounding and clipping error."""

    name = "mse"

    def cost(
        self, middles: Tensor, counts: Tensor, low: Tensor, high: Tensor, scheme: Scheme
    ) -> Tensor:
        """Return the sum of squared errors of each range."""
        return torch.stack(
            [
                (counts * (_rounded(middles, *ends, scheme)[1] - middles).square()).sum()
                for ends in zip(low, high, strict=True)
            ]
        )


class Entropy(Search):
    """The range of least Kullback-Leibler divergence of the rounded values from the values.

    Szymon Migacz, "8-bit inference with TensorRT", GTC 2017: P is the histogram within the range,
    what is outside added to its outermost bins; Q spreads the inner counts of each integer evenly
    over its bins that are not empty.
    """

    name = "entropy"

    def cost(
        self, middles: Tensor, counts: Tensor, low: Tensor, high: Tensor, scheme: Scheme
    ) -> Tensor:
        """Return the divergence of each range; infinity where it has fewer bins than integers."""
        width = 2.0 ** float(self.exponent) / BINS
        least = width * (scheme.qmax - scheme.qmin)
        return torch.stack(
            [
                _divergence(middles, counts, low_end, high_end, scheme)
                if float(high_end - low_end) >= least
                else counts.new_full((), torch.inf)
                for low_end, high_end in zip(low.clamp(max=0), high.clamp(min=0), strict=True)
            ]
        )


def _rounded(middles: Tensor, low: Tensor, high: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """Return the integers from 0 on, and the values that they stand for, of each bin."""
    scale, zero = scheme.parameters(low, high)
    integers = quantize(middles, scale, zero, scheme.qmin, scheme.qmax)
    return integers - scheme.qmin, dequantize(integers, scale.double(), zero.double())


def _divergence(
    middles: Tensor, counts: Tensor, low: Tensor, high: Tensor, scheme: Scheme
) -> Tensor:
    inside = (middles >= low) & (middles <= high)
    first, last = _ends(inside)
    if first < 0:
        return counts.new_full((), torch.inf)
    p = counts[first : last + 1].clone()
    p[0] += counts[:first].sum()
    p[-1] += counts[last + 1 :].sum()
    integers = _rounded(middles[first : last + 1], low, high, scheme)[0].long()
    inner = counts[first : last + 1]
    levels = 2**scheme.bits
    of_level = inner.new_zeros(levels).index_add_(0, integers, inner)
    bins = inner.new_zeros(levels).index_add_(0, integers, torch.ones_like(inner))
    q = (of_level / bins)[integers]
    p, q = p / p.sum(), q / q.sum()
    return (p * (p / q).log()).sum()


def _ends(inside: Tensor) -> tuple[int, int]:
    """Return the first and the last place that is true, -1 where none is; they are a run."""
    places = inside.nonzero().flatten()
    return (int(places[0]), int(places[-1])) if places.numel() else (-1, -1)
