"""AdaRound: whether each weight is rounded up or down is learned, for the layer's outputs.

Nagel et al. 2020, "Up or Down? Adaptive Rounding for Post-Training Quantization", arXiv 2004.10568,
eq. 21 to 24. The squared error of outputs (eq. 25 without the activation function) is taken from
the inputs' Gram matrix, which knows all of it: no batches are drawn, and nothing is random.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from engine import Wrapper
from engine.calibration import LayerInputs, LayerResult, best_damped
from engine.quantization import Grid, PostTrainingQuantizer

#: The stretch of the sigmoid, from -0.1 to 1.1 (below eq. 23).
_STRETCH, _BELOW = 1.2, 0.1
#: The exponent of eq. 24, from where few values are pushed to where all are.
_BETAS = (20.0, 2.0)
#: For so much of the iterations nothing is pushed.
_WARM_UP = 0.2
_RATE = 0.01


class AdaRoundQuantizer(PostTrainingQuantizer):
    """Learns which of the two neighbours on its grid each weight becomes."""

    default_schemes: ClassVar[tuple[str, str]] = ("per_channel_symmetric", "per_tensor_affine")
    iterations: int
    regularization: float
    damping: list[float]
    clip: bool

    def calibrate_layer(
        self, wrapper: Wrapper, inputs: LayerInputs, sparsity: float | None
    ) -> LayerResult:
        """Return the weight on its grid; rounded to nearest where learning is of no use."""
        grid: Grid = wrapper.grids["weight"]  # type: ignore[assignment]
        fixed = self.clipped_grid(wrapper, inputs, clip=self.clip)
        if not inputs.has_rows:
            weight = grid.nearest(wrapper.weight.detach().float(), *fixed)
            return LayerResult(None, weight, fixed, "were rounded to nearest")
        scale, zero = (inputs.matrix(grid.spread(each)) for each in fixed)
        limits = grid.scheme.qmin - zero, grid.scheme.qmax - zero
        weight = inputs.weight()

        def plain(matrix: Tensor) -> Tensor:
            return (matrix / scale).round().clamp(*limits) * scale

        def learned(gram: Tensor, damping: float) -> Tensor:
            diagonal = gram.diagonal(dim1=-2, dim2=-1)
            eye = torch.eye(gram.shape[-1], device=gram.device)
            gram = gram + damping * diagonal.mean(-1)[..., None, None] * eye
            return self._rounded(weight, gram, scale, limits, plain(weight))

        found = best_damped(inputs, plain, learned, dampings=self.damping)
        note = "" if found.damping is not None else "were better rounded to nearest"
        return LayerResult(None, inputs.restored(found.weight), fixed, note)

    @torch.enable_grad()
    def _rounded(
        self,
        weight: Tensor,
        gram: Tensor,
        scale: Tensor,
        limits: tuple[Tensor, Tensor],
        nearest: Tensor,
    ) -> Tensor:
        """Return the weight rounded for least error, each row's relative to that of nearest.

        A row that is not better for it is rounded to nearest.
        """
        low = (weight / scale).floor()
        v = torch.logit((weight / scale - low + _BELOW) / _STRETCH).requires_grad_()
        change = nearest - weight
        plain = ((change @ gram) * change).mean(-1, keepdim=True)
        unit = plain.clamp(min=1e-30)
        optimizer = torch.optim.Adam([v], lr=_RATE)
        for iteration in range(self.iterations):
            h = (_STRETCH * v.sigmoid() - _BELOW).clamp(0, 1)  # eq. 23
            change = (low + h).clamp(*limits) * scale - weight  # eq. 22
            # The gradient of D G D^T is 2 D G: one product in place of three.
            loss = 2 * (change * (change.detach() @ gram) / unit).sum()
            place = (iteration / self.iterations - _WARM_UP) / (1 - _WARM_UP)
            if place >= 0:
                wave = (1 + math.cos(math.pi * place)) / 2
                beta = _BETAS[1] + (_BETAS[0] - _BETAS[1]) * wave
                loss = loss + self.regularization * (1 - (2 * h - 1).abs() ** beta).sum()  # eq. 24
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        made = (low + (v.detach() >= 0)).clamp(*limits) * scale
        change = made - weight
        return made.where(((change @ gram) * change).mean(-1, keepdim=True) < plain, nearest)
