"""SmoothQuant: outliers of activations are moved into weights before both are rounded.

Xiao et al. 2022, "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language
Models", arXiv 2211.10438, eq. 4. The strength is searched, not given.
"""

from __future__ import annotations

import torch
from torch import Tensor

from engine import QuantType, Wrapper
from engine.calibration import LayerInputs, LayerResult, Scaling
from engine.quantization import PostTrainingQuantizer, best_grid, scheme_of


class SmoothQuantQuantizer(PostTrainingQuantizer):
    """Divides activations by ``max|X_j|^a / max|W_j|^(1-a)``, with the a of least error."""

    strengths: list[float]
    points: int

    def calibrate_layer(
        self, wrapper: Wrapper, inputs: LayerInputs, sparsity: float | None
    ) -> LayerResult | None:
        """Scale what can be scaled in the layer's block, once; weights are rounded as ever."""
        for scaling in inputs.scalings():
            scaling.multiply(self._factors(scaling), self.change)
        return None

    def _factors(self, scaling: Scaling) -> Tensor:
        rows, largest = scaling.inputs.rows(self.points), scaling.inputs.largest()
        weights = [scaling.inputs_of(reader).weight() for reader in scaling.readers]
        of_weights = torch.stack([weight.abs().amax(0) for weight in weights]).amax(0)
        best = torch.ones_like(scaling.by_channel(largest))
        least = self._error(scaling, rows, weights, best)
        for strength in self.strengths:
            columns = largest**strength / of_weights.clamp(min=1e-5) ** (1 - strength)
            factors = scaling.by_channel(columns.clamp(min=1e-5))
            error = self._error(scaling, rows, weights, factors)
            if error < least:
                best, least = factors, error
        return best

    def _error(
        self, scaling: Scaling, rows: Tensor, weights: list[Tensor], factors: Tensor
    ) -> float:
        """Return the squared error of the readers' outputs, inputs and weights rounded."""
        columns = scaling.by_column(factors)
        error = 0.0
        for reader, weight in zip(scaling.readers, weights, strict=True):
            inputs, x, w = scaling.inputs_of(reader), rows / columns, weight * columns
            if QuantType.INPUT.key in reader.grids:
                x = scheme_of(reader, QuantType.INPUT).round_over_extremes(x)
            if QuantType.WEIGHT.key in reader.grids:
                grid, scaled = reader.grids["weight"], inputs.restored(w)
                found = best_grid(grid, scaled, clip=False)  # type: ignore[arg-type]
                w = inputs.matrix(grid.nearest(scaled, *found))
            error += float((x @ w.T - rows @ weight.T).square().sum())
        return error
