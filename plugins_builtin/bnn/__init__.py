"""Binarized neural networks: weights and activations of +1 and -1.

Courbariaux et al. 2016, "Binarized Neural Networks", arXiv 1602.02830, section 1 and algorithm 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from engine import ExportError, Quantizer, QuantType, Wrapper
from engine.quantization import AffineForm
from engine.quantization.quantizer import quant_types_of


class BNNQuantizer(Quantizer):
    """Takes signs; the latent weights stay in [-1, 1]."""

    def quantize_weight(self, weight: Tensor, wrapper: Wrapper) -> Tensor:
        """Return ``sign(w)``, +1 for 0 (eq. 1)."""
        return _sign(weight)

    def quantize_input(self, input: Tensor, wrapper: Wrapper) -> Tensor:
        """Return ``sign(a)``, +1 for 0."""
        return _sign(input)

    def quantize_output(self, output: Tensor, wrapper: Wrapper) -> Tensor:
        """Return ``sign(a)``, +1 for 0."""
        return _sign(output)

    def quant_backward(self, tensor: Tensor, grad_output: Tensor) -> Tensor:
        """Return ``g 1[|r| <= 1]`` (eq. 4)."""
        return grad_output * (tensor.abs() <= 1)

    @torch.no_grad()
    def step(self) -> None:
        """Clip the latent weights to [-1, 1] (algorithm 1, last lines)."""
        for wrapper in self.wrappers:
            if QuantType.WEIGHT in quant_types_of(wrapper):
                wrapper.weight.clamp_(-1, 1)

    def affine_form(self, wrapper: Wrapper, quant_type: QuantType) -> AffineForm:
        """Return the integers -1 and 1 of a weight; a sign is no rounding, so no activation's.

        Raises:
            ExportError: it is an activation that is asked for.
        """
        if quant_type != QuantType.WEIGHT:
            raise ExportError(
                f'bnn has no affine form for the {quant_type.key} of layer "{wrapper.name}": it '
                "takes signs, which no scale and zero point round to"
            )
        return AffineForm(torch.tensor(1.0), torch.zeros((), dtype=torch.int32), -1, 1)


def _sign(tensor: Tensor) -> Tensor:
    """Return +1 from 0 on, else -1 (NaN too), in the tensor's dtype."""
    return torch.where(tensor >= 0, 1.0, -1.0).to(tensor.dtype)
