"""What a trainer's log says of a compression."""

from __future__ import annotations

import torch

from engine.attach.compressor import Compressor


@torch.no_grad()
def sparsity_of(compressor: Compressor) -> float | None:
    """Return which fraction of all masked layers' weights is removed; None without masks."""
    masks = [
        mask for wrapper in compressor.wrappers if (mask := wrapper.mask("weight")) is not None
    ]
    if not masks:
        return None
    kept = sum(int(torch.count_nonzero(mask)) for mask in masks)
    total = sum(mask.numel() for mask in masks)
    return 1 - kept / max(total, 1)
