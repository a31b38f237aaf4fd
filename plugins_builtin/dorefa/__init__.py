"""DoReFa-Net: low bit width weights, activations and gradients.

Zhou et al. 2016, "DoReFa-Net: Training Low Bitwidth Convolutional Neural Networks with Low
Bitwidth Gradients", arXiv 1606.06160, section 2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from engine import Quantizer, QuantType, Wrapper
from engine.quantization import (
    AffineForm,
    quantize_clipped,
    quantize_unit,
    straight_through,
    wide,
)
from engine.quantization.quantizer import bits_of


class DoReFaQuantizer(Quantizer):
    """Quantizes by eq. 7 to 12; tanh and the maximum are differentiated, only rounding is not.

    Ranges are fixed: weights fill [-1, 1], activations are clipped to [0, 1] and get no gradient
    beyond. Activations need a batch norm before them, and the first and the last layer stay float
    (section 2.7), or training is likely to fail: without a norm sums of such weights are far above
    1, and whatever the bits, nearly all activations become 0 or 1.
    """

    reads_weights = True

    quant_grad = None

    def quantize_weight(self, weight: Tensor, wrapper: Wrapper) -> Tensor:
        """Return ``2 q_k(tanh w / (2 max|tanh w|) + 1/2) - 1``, or ``sign(w) E|w|`` for 1 bit."""
        weight = wide(weight)
        bits = bits_of(wrapper, QuantType.WEIGHT)
        if bits == 1:
            mean = weight.detach().abs().mean()
            return straight_through(weight, torch.where(weight >= 0, mean, -mean))
        squashed = weight.tanh()
        peak = _or_one(squashed.abs().max())
        return 2 * quantize_unit(squashed / (2 * peak) + 0.5, bits) - 1

    def quantize_input(self, input: Tensor, wrapper: Wrapper) -> Tensor:
        """Return ``q_k(clip(a, 0, 1))`` (section 2.4)."""
        return quantize_clipped(input, bits_of(wrapper, QuantType.INPUT))

    def quantize_output(self, output: Tensor, wrapper: Wrapper) -> Tensor:
        """Return ``q_k(clip(a, 0, 1))`` (section 2.4)."""
        return quantize_clipped(output, bits_of(wrapper, QuantType.OUTPUT))

    def quant_backward(self, grad_output: Tensor, wrapper: Wrapper) -> Tensor:
        """Return eq. 12: ``2 m (q_k(g / 2m + 1/2 + N) - 1/2)``, m = max|g| of each sample.

        N is uniform on [-1/2, 1/2] / (2^k - 1), so that rounding is unbiased.
        """
        bits = bits_of(wrapper, QuantType.GRADIENT)
        gradient = wide(grad_output)
        one_sample = tuple(range(1, gradient.dim()))
        peak = gradient.abs()
        peak = peak.amax(one_sample, keepdim=True) if one_sample else peak
        noise = (torch.rand_like(gradient) - 0.5) / (2**bits - 1)
        unit = gradient / (2 * _or_one(peak)) + 0.5 + noise
        return 2 * peak * (quantize_clipped(unit, bits) - 0.5)

    def affine_form(self, wrapper: Wrapper, quant_type: QuantType) -> AffineForm:
        """Return the integers that the levels are, up to the last bit of float32.

        A weight of k bits is ``(2 q - (2^k - 1)) / (2^k - 1)``: odd integers, of k + 1 bits.
        """
        bits = bits_of(wrapper, quant_type)
        levels = 2**bits - 1
        zero = torch.zeros((), dtype=torch.int32)
        if quant_type == QuantType.WEIGHT and bits == 1:
            return AffineForm(wide(wrapper.weight.detach()).abs().mean().float(), zero, -1, 1)
        least = -levels if quant_type == QuantType.WEIGHT else 0
        return AffineForm(torch.tensor(1 / levels), zero, least, levels)


def _or_one(peak: Tensor) -> Tensor:
    """Return ``peak``, 1 where it is 0, so that nothing is divided by zero."""
    return peak.where(peak > 0, 1.0)
