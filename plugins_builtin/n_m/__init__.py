"""N:M sparsity: of each M consecutive weights of a row, at most N are left.

Mishra et al. 2021, "Accelerating Sparse Deep Neural Networks", arXiv 2104.08378, section 2.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from engine import Wrapper, hookimpl
from engine.attach.layout import layout_of
from engine.calibration import n_m_mask, pattern_of
from engine.pruning import wide


class NM:
    """Puts a pruner's masks into a pattern, what the pruner keeps before what it removes.

    Rows are those of the weight as a matrix; of a convolution, the input channels at one place of
    the window lie together, as kernels want them. A row that the pruner removes whole stays
    removed. While less is asked of a layer than the pattern removes, as in the first epochs of a
    schedule, the mask stays the pruner's.

    Args:
        pattern: "2:4" for example.
    """

    def __init__(self, pattern: str = "2:4") -> None:
        pair = pattern_of(pattern)
        assert pair is not None  # the schema says so
        self.removed, self.of = pair

    @hookimpl(wrapper=True)
    def calc_mask(self, wrapper: Wrapper, sparsity: float) -> Any:
        """Return the mask in the pattern."""
        masks = yield
        layout = layout_of(wrapper.module)
        if masks is None or layout is None or sparsity + 1e-6 < self.removed / self.of:
            return masks
        weight = wide(wrapper.weight.detach())
        kept = masks["weight_mask"].expand(weight.shape).to(weight.dtype)
        magnitude = self._rows(layout.rows(weight.abs()), weight)
        kept = self._rows(layout.rows(kept), weight)
        scores = magnitude / magnitude.max().clamp(min=1e-30) + 2 * kept
        pattern = n_m_mask(scores, self.removed, self.of) & (kept.sum(-1, keepdim=True) > 0)
        if sparsity - 1e-6 > self.removed / self.of:
            pattern = pattern & (kept > 0)
        restored = layout.restored(self._back(pattern, weight), weight.shape)
        return {**masks, "weight_mask": restored}

    @staticmethod
    def _rows(rows: Tensor, weight: Tensor) -> Tensor:
        """Return (channels, elements) with the window's places in front of the input channels."""
        if weight.dim() < 3:
            return rows
        places = weight[0, 0].numel()
        return rows.view(len(rows), -1, places).transpose(1, 2).reshape(rows.shape)

    @staticmethod
    def _back(rows: Tensor, weight: Tensor) -> Tensor:
        if weight.dim() < 3:
            return rows
        places = weight[0, 0].numel()
        return rows.view(len(rows), places, -1).transpose(1, 2).reshape(rows.shape)
