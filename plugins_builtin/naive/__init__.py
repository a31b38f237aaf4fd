"""Naive quantization: weights rounded to a symmetric grid over their largest magnitude."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from engine import Quantizer, QuantType, Wrapper
from engine.quantization import keep_grid, scheme_of


class NaiveQuantizer(Quantizer):
    """Rounds each weight to ``S q``, S = max|w| / (2^(b-1) - 1); no training is needed."""

    reads_weights = True

    quant_grad = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for wrapper in self.wrappers:
            scheme = scheme_of(wrapper, QuantType.WEIGHT, "per_tensor_symmetric")
            keep_grid(wrapper, QuantType.WEIGHT, scheme)

    def quantize_weight(self, weight: Tensor, wrapper: Wrapper) -> Tensor:
        """Return ``S round(w / S)``; the gradient passes unchanged, since nothing is clipped."""
        quantized: Tensor = wrapper.grids["weight"].over_extremes(weight)
        return quantized
