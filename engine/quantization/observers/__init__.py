"""What finds the range of an activation; see :class:`Observer`."""

from __future__ import annotations

from engine.quantization.observers.base import Observer, is_distributed
from engine.quantization.observers.extremes import MinMax, MovingAverage
from engine.quantization.observers.histogram import Histogram
from engine.quantization.observers.percentile import Percentile
from engine.quantization.observers.search import MSE, Entropy, Search

#: Observers by the names that configurations use.
OBSERVERS: dict[str, type[Observer]] = {
    cls.name: cls for cls in (MinMax, MovingAverage, Percentile, MSE, Entropy)
}

__all__ = [
    "MSE",
    "OBSERVERS",
    "Entropy",
    "Histogram",
    "MinMax",
    "MovingAverage",
    "Observer",
    "Percentile",
    "Search",
    "is_distributed",
]
