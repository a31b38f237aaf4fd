"""Learned step size quantization.

Esser, McKinstry, Bablani, Appuswamy, Modha 2020, "Learned Step Size Quantization",
arXiv 1902.08153, section 2.
"""

from __future__ import annotations

from torch import Tensor

from engine import QuantType
from engine.quantization.learning_quantizer import LearningQuantizer


class LSQQuantizer(LearningQuantizer):
    """Learns the step of each weight and activation; weights are signed, zero is the integer 0.

    Activations are unsigned where the first batch has no negative value, unless ``quant_dtype``
    says otherwise.
    """

    reads_weights = True

    def begin(
        self, tensor: Tensor, like: Tensor, quant_type: QuantType, qmin: int, qmax: int
    ) -> tuple[Tensor, Tensor]:
        """Return the step ``2 E|v| / sqrt(Q_P)`` (section 2.1), and 0."""
        dims = [dim for dim in range(tensor.dim()) if like.dim() == 0 or like.shape[dim] == 1]
        mean = tensor.abs().mean(dims, keepdim=like.dim() > 0)
        step = 2 * mean / qmax**0.5
        return step, step.new_zeros(like.shape)
