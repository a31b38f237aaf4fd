"""LSQ+: learned step sizes and, for activations, learned offsets.

Bhalgat, Lee, Nagel, Blankevoort, Kwak 2020, "LSQ+: Improving low-bit quantization through learnable
offsets and better initialization", arXiv 2004.09576, section 3.
"""

from __future__ import annotations

from torch import Tensor

from engine import QuantType
from engine.quantization import Scheme
from engine.quantization.learning_quantizer import LearningQuantizer
from engine.quantization.observers import MSE


class LSQPlusQuantizer(LearningQuantizer):
    """LSQ for activations of any sign: their grid's offset is learned as well.

    The offset counts as a whole number of steps, so that zero stays on the grid.
    """

    reads_weights = True

    def learns_offset(self, quant_type: QuantType) -> bool:
        """Return True for activations."""
        return quant_type != QuantType.WEIGHT

    def begin(
        self, tensor: Tensor, like: Tensor, quant_type: QuantType, qmin: int, qmax: int
    ) -> tuple[Tensor, Tensor]:
        """Return ``max|mean +- 3 std| / 2^(b-1)`` for weights, else the range of least MSE.

        Section 3.2 of the paper; the MSE is that of the first batch.
        """
        if quant_type == QuantType.WEIGHT:
            dims = [dim for dim in range(tensor.dim()) if like.dim() == 0 or like.shape[dim] == 1]
            mean = tensor.mean(dims, keepdim=like.dim() > 0)
            spread = 3 * tensor.std(dims, correction=0, keepdim=like.dim() > 0)
            return (mean.abs() + spread) / -qmin, mean.new_zeros(like.shape)
        observer = MSE()
        observer.observe(tensor)
        low, high = observer.limits(Scheme((qmax - qmin).bit_length(), signed=True))
        low, high = low.clamp(max=0), high.clamp(min=0)
        scale = (high - low) / (qmax - qmin)
        return scale, low - qmin * scale
