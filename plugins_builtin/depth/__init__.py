"""Blocks that change least what runs through them are left out.

Men et al. 2024, "ShortGPT: Layers in Large Language Models are More Redundant Than You Expect",
arXiv 2403.03853, eq. 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from engine.pruning import BlockPruner


class DepthPruner(BlockPruner):
    """Removes the blocks of least influence, ``1 - E cos(x_l, x_l+1)`` over tokens."""

    def score_block(self, before: Tensor, after: Tensor) -> Tensor:
        """Return 1 minus the cosine of what the block gets and puts out, for each token."""
        return 1 - torch.cosine_similarity(before, after, dim=-1)
