"""Naive quantization: weights rounded to a symmetric grid over their largest magnitude."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from engine import Quantizer, Wrapper
from engine.quantization import affine_parameters, fake_quantize
from engine.quantizer import bits_of


class NaiveQuantizer(Quantizer):
    """Rounds each weight to ``S q``, S = max|w| / (2^(b-1) - 1); no training is needed."""

    quant_grad = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for wrapper in self.wrappers:
            limit = 2 ** (bits_of(wrapper, "weight") - 1) - 1
            wrapper.weight_qmin, wrapper.weight_qmax = -limit, limit
            wrapper.set_attribute("weight_scale", torch.ones(()))
            wrapper.set_attribute("weight_zero_point", torch.zeros(()))

    def quantize_weight(self, weight: Tensor, wrapper: Wrapper) -> Tensor:
        """Return ``S round(w / S)``; the gradient passes unchanged, since nothing is clipped."""
        limit = wrapper.weight_qmax
        low, high = weight.detach().float().aminmax()
        scale, zero_point = affine_parameters(low, high, -limit, limit, symmetric=True)
        wrapper.weight_scale.copy_(scale)
        return fake_quantize(weight, scale, zero_point, -limit, limit, never_clips=True)
