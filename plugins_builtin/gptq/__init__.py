"""GPTQ: weights rounded column by column, those that are left making up for what rounding took.

Frantar, Ashkboos, Hoefler, Alistarh 2022, "GPTQ: Accurate Post-Training Quantization for Generative
Pre-trained Transformers", arXiv 2210.17323, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from torch import Tensor

from engine import Wrapper
from engine.calibration import Choose, LayerInputs, LayerResult, best_sweep
from engine.quantization import Grid, PostTrainingQuantizer


class GPTQQuantizer(PostTrainingQuantizer):
    """Rounds each weight to a grid that stands from the beginning, largest inputs first."""

    default_schemes: ClassVar[tuple[str, str]] = ("per_group_symmetric", "per_tensor_affine")
    damping: list[float]
    activation_order: bool
    clip: bool

    def calibrate_layer(
        self, wrapper: Wrapper, inputs: LayerInputs, sparsity: float | None
    ) -> LayerResult:
        """Return the weight on its grid; the damping is the best on inputs kept apart."""
        grid: Grid = wrapper.grids["weight"]  # type: ignore[assignment]
        if inputs.has_rows:
            # The pass for what the sweep begins with tells the square norms that clipping asks for.
            (inputs.fitted if len(self.damping) > 1 else inputs).gram()
        scale, zero_point = self.clipped_grid(wrapper, inputs, clip=self.clip)
        if not inputs.has_rows:
            weight = grid.nearest(wrapper.weight.detach().float(), scale, zero_point)
            return LayerResult(None, weight, (scale, zero_point), "were rounded to nearest")
        # By columns, since they are rounded one by one.
        scales, zeros = (inputs.matrix(grid.spread(x)).mT.contiguous() for x in (scale, zero_point))
        qmin, qmax = grid.scheme.qmin, grid.scheme.qmax

        def of_group(number: int) -> Choose:
            steps, zero = (x if x.dim() == 2 else x[number] for x in (scales, zeros))

            def rounded(column: int, value: Tensor) -> Tensor:
                q = (value / steps[column]).round_().add_(zero[column]).clamp_(qmin, qmax)
                return q.sub_(zero[column]).mul_(steps[column])

            def choose(start: int, values: Tensor, diagonal: Tensor) -> Callable[..., Tensor]:
                return rounded

            return choose

        def plain(matrix: Tensor) -> Tensor:
            return inputs.matrix(grid.nearest(inputs.restored(matrix), scale, zero_point))

        found = best_sweep(
            inputs, plain, of_group, dampings=self.damping, largest_first=self.activation_order
        )
        note = "" if found.damping is not None else "were better rounded to nearest"
        return LayerResult(None, inputs.restored(found.weight), (scale, zero_point), note)
