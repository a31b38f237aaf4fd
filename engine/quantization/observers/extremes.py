"""Ranges from the extremes of batches: all that was ever seen, or what is usual."""

from __future__ import annotations

import torch
from torch import Tensor

from engine.quantization.observers.base import Observer, is_distributed


class MinMax(Observer):
    """The smallest and the largest value of all batches: nothing clips, one outlier is enough."""

    name = "min_max"

    def take(self, tensor: Tensor, extremes: Tensor) -> None:
        """Widen the range to hold ``extremes``."""
        low = torch.fmin(self.range[0], extremes[0])  # NaN, before anything was seen, loses
        high = torch.fmax(self.range[1], extremes[1])
        self.range.copy_(torch.stack((low, high)))


class MovingAverage(Observer):
    """The exponential moving average of each batch's extremes (Jacob et al. 2018, section 3.1).

    The first batch sets the range; each later one moves it by ``1 - decay`` towards its own.

    Args:
        decay: smoothing over batches, 0 <= decay < 1.

    Raises:
        ValueError: another ``decay``.
    """

    name = "moving_average"

    def __init__(self, decay: float = 0.99) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"decay is {decay}; needed: 0 <= decay < 1")
        self.decay = decay

    def take(self, tensor: Tensor, extremes: Tensor) -> None:
        """Move the range towards ``extremes``."""
        moved = self.range.lerp(extremes, 1 - self.decay)
        self.range.copy_(extremes.where(self.range.isnan(), moved))

    def synchronize(self) -> None:
        """Average the ranges: the average of averages is that of the processes' batches."""
        if is_distributed():
            seen = (~self.range.isnan()).float()
            both = torch.stack((self.range.nan_to_num(nan=0.0), seen))
            torch.distributed.all_reduce(both)
            self.range.copy_(both[0] / both[1])
