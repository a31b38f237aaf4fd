"""AWQ: what is multiplied with large activations is scaled up before weights are rounded.

Lin et al. 2023, "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration",
arXiv 2306.00978, section 3.2, eq. 4 and 5. The error is that of the readers' own outputs, of which
the inputs' Gram matrix knows all, in place of the outputs of the block around them.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from engine import Wrapper
from engine.calibration import LayerInputs, LayerResult, Scaling, squared_error
from engine.quantization import Grid, PostTrainingQuantizer, best_grid


class AWQQuantizer(PostTrainingQuantizer):
    """Scales channels by ``mean|x|^alpha``, the best alpha of some, then rounds to nearest."""

    default_schemes: ClassVar[tuple[str, str]] = ("per_group_affine", "per_tensor_affine")
    alphas: int
    clip: bool

    def calibrate_layer(
        self, wrapper: Wrapper, inputs: LayerInputs, sparsity: float | None
    ) -> LayerResult:
        """Scale what can be scaled in the block, once; return the layer's rounded weight."""
        for scaling in inputs.scalings():
            scaling.multiply(self._factors(scaling), self.change)
        grid: Grid = wrapper.grids["weight"]  # type: ignore[assignment]
        found = self.clipped_grid(wrapper, inputs, clip=self.clip)
        weight = grid.nearest(wrapper.weight.detach().float(), *found)
        return LayerResult(None, weight, found)

    def _factors(self, scaling: Scaling) -> Tensor:
        """Return the factors with the least error of rounding, among powers of the mean (eq. 5)."""
        gram = scaling.inputs.gram()
        means = scaling.by_channel(scaling.inputs.means()).clamp(min=1e-4)
        best = torch.ones_like(means)
        least = float("inf")
        for step in range(self.alphas):
            factors = means ** (step / self.alphas)
            factors = factors / (factors.max() * factors.min()).sqrt()
            error = sum(self._error(reader, factors, scaling, gram) for reader in scaling.readers)
            if error < least:
                best, least = factors, error
        return best

    def _error(self, reader: Wrapper, factors: Tensor, scaling: Scaling, gram: Tensor) -> float:
        grid: Grid = reader.grids["weight"]  # type: ignore[assignment]
        inputs = scaling.inputs_of(reader)
        weight, columns = inputs.weight(), scaling.by_column(factors)
        scaled = inputs.restored(weight * columns)
        rounded = grid.nearest(scaled, *best_grid(grid, scaled, clip=False))
        return squared_error(inputs.matrix(rounded) / columns - weight, gram)
