"""Naive quantization: weights rounded to a symmetric grid over their largest magnitude."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from engine import Quantizer, QuantType, Wrapper
from engine.quantization import keep_grid, quantize_over_extremes
from engine.quantizer import bits_of


class NaiveQuantizer(Quantizer):
    """Rounds each weight to ``S q``, S = max|w| / (2^(b-1) - 1); no training is needed."""

    quant_grad = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for wrapper in self.wrappers:
            limit = 2 ** (bits_of(wrapper, QuantType.WEIGHT) - 1) - 1
            keep_grid(wrapper, QuantType.WEIGHT, -limit, limit)

    def quantize_weight(self, weight: Tensor, wrapper: Wrapper) -> Tensor:
        """Return ``S round(w / S)``; the gradient passes unchanged, since nothing is clipped."""
        return quantize_over_extremes(weight, wrapper, symmetric=True)
