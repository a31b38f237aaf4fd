"""PACT: activations are clipped at a level that is learned, then rounded.

Choi, Wang, Venkataramani, Chuang, Srinivasan, Gopalakrishnan 2018, "PACT: Parameterized Clipping
Activation for Quantized Neural Networks", arXiv 1805.06085, section 3; weights as in DoReFa-Net
(Zhou et al. 2016, arXiv 1606.06160, eq. 9), which the paper uses for them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from engine import Quantizer, QuantType, Wrapper, bits_of, quant_types_of
from engine.quantization import AffineForm, quantize_unit


class Clip(torch.autograd.Function):
    """``y = clip(x, 0, a)``, rounded to ``levels + 1`` values (eq. 1 and 2)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: Tensor, levels: int) -> Tensor:
        """Return ``round(y levels / a) a / levels``."""
        ctx.save_for_backward(x, alpha)
        step = alpha / levels
        return (x.float().clamp(min=0).minimum(alpha) / step).round().mul(step).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        """Return eq. 3: the gradient is x's inside, a's above, and nobody's below."""
        x, alpha = ctx.saved_tensors
        above = x >= alpha
        return grads[0] * ((x >= 0) & ~above), (grads[0] * above).float().sum(), None


class PACTQuantizer(Quantizer):
    """Learns one clipping level for each quantized input or output; weights are DoReFa's."""

    quant_grad = None  # Clip has its own, quantize_unit passes it straight through
    initial_alpha: float
    alpha_decay: float

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for wrapper in self.wrappers:
            for quant_type in set(quant_types_of(wrapper)) - {QuantType.WEIGHT}:
                wrapper.learn(f"{quant_type.key}_alpha", torch.tensor(self.initial_alpha))

    def quantize_weight(self, weight: Tensor, wrapper: Wrapper) -> Tensor:
        """Return ``2 q_k(tanh w / (2 max|tanh w|) + 1/2) - 1``."""
        squashed = weight.float().tanh()
        unit = squashed / (2 * squashed.abs().max().clamp(min=1e-30)) + 0.5
        return 2 * quantize_unit(unit, bits_of(wrapper, QuantType.WEIGHT)) - 1

    def quantize_input(self, input: Tensor, wrapper: Wrapper) -> Tensor:
        """Return the input, clipped and rounded."""
        return self.clip(input, wrapper, QuantType.INPUT)

    def quantize_output(self, output: Tensor, wrapper: Wrapper) -> Tensor:
        """Return the output, clipped and rounded."""
        return self.clip(output, wrapper, QuantType.OUTPUT)

    def clip(self, tensor: Tensor, wrapper: Wrapper, quant_type: QuantType) -> Tensor:
        """Return the tensor clipped at its layer's level and rounded."""
        alpha = wrapper.learned(f"{quant_type.key}_alpha", tensor)
        return Clip.apply(tensor, alpha, 2 ** bits_of(wrapper, quant_type) - 1)

    def before_step(self) -> None:
        """Add the gradient of the penalty ``alpha_decay * a^2`` (section 3)."""
        for wrapper in self.wrappers:
            for alpha in wrapper.parameters():
                if alpha.grad is not None:
                    alpha.grad += 2 * self.alpha_decay * alpha.detach()

    @torch.no_grad()
    def step(self) -> None:
        """Keep levels positive."""
        for wrapper in self.wrappers:
            for alpha in wrapper.parameters():
                alpha.clamp_(min=1e-3)

    def affine_form(self, wrapper: Wrapper, quant_type: QuantType) -> AffineForm:
        """Return what is exported: integers from 0 for activations, odd ones for weights."""
        levels = 2 ** bits_of(wrapper, quant_type) - 1
        zero = torch.zeros((), dtype=torch.int32)
        if quant_type == QuantType.WEIGHT:
            return AffineForm(torch.tensor(1 / levels), zero, -levels, levels)
        alpha = getattr(wrapper, f"{quant_type.key}_alpha").detach()
        return AffineForm(alpha / levels, zero, 0, levels)
