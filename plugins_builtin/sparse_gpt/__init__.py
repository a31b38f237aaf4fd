"""SparseGPT: one-shot pruning in which the weights that stay make up for those that go.

Frantar and Alistarh 2023, "SparseGPT: Massive Language Models Can Be Accurately Pruned in
One-Shot", arXiv 2301.00774, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from engine import Wrapper
from engine.calibration import (
    Choose,
    LayerInputs,
    LayerResult,
    best_sweep,
    n_m_mask,
)
from engine.pruning import PatternedPruner, prune_count, smallest_removed


class SparseGPTPruner(PatternedPruner):
    """Removes weights of least ``w^2 / [H^-1]_jj``, block by block, and updates the others."""

    block_size: int
    damping: list[float]

    def calibrate_layer(
        self, wrapper: Wrapper, inputs: LayerInputs, sparsity: float
    ) -> LayerResult:
        """Return the weight that is left; the damping is the best on inputs kept apart."""
        gone = self.gone(wrapper, inputs)

        def kept(scores: Tensor, gone: Tensor) -> Tensor:
            scores = scores.masked_fill(gone, -1.0)  # what is gone stays gone
            if self.removes is not None:
                return n_m_mask(scores, *self.removes)
            return smallest_removed(scores, prune_count(scores.numel(), sparsity))

        def of_group(number: int) -> Choose:
            own = gone if gone.dim() == 2 else gone[number]

            def choose(start: int, values: Tensor, diagonal: Tensor) -> Callable[..., Tensor]:
                columns = slice(start, start + values.shape[1])
                mask = kept(values.square() / diagonal.square(), own[:, columns])
                return lambda column, value: value * mask[:, column - start]

            return choose

        def plain(weight: Tensor) -> Tensor:
            norms = inputs.square_norms().sqrt().unsqueeze(-2)
            return weight * kept(weight.abs() * norms, gone)

        step = self.block_size if self.removes is None else self.removes[1]
        found = best_sweep(inputs, plain, of_group, dampings=self.damping, step=step)
        note = "" if found.damping is not None else "were better masked without an update"
        mask = torch.ones_like(found.weight).where(found.weight != 0, 0)
        return LayerResult(inputs.restored(mask), inputs.restored(found.weight), note=note)
