"""The number of kept filters becomes a multiple that the hardware likes."""

from __future__ import annotations

from typing import Any

import torch

from engine import Wrapper, hookimpl
from engine.pruning import Channels, smallest_removed, wide


class ChannelRounding:
    """Keeps more filters, those of largest norm, until their number is a multiple.

    Each layer by itself. Layers that are bound together are rounded by the ``round_to`` of
    ``dependency_aware`` or ``global_ranking``, whose masks this extension leaves as they are.

    Args:
        round_to: the multiple.
    """

    def __init__(self, round_to: int = 8) -> None:
        self.round_to = round_to

    @hookimpl(wrapper=True)
    def calc_mask(self, wrapper: Wrapper) -> Any:
        """Return the pruner's mask with as many filters restored as the multiple needs."""
        masks = yield
        if masks is None or wrapper.weight.dim() < 2:
            return masks
        channels = Channels(wrapper.module)
        mask = masks["weight_mask"].expand(wrapper.weight.shape)
        kept = channels.left(mask)
        count = int(kept.sum())
        wanted = min(channels.count, -(-count // self.round_to) * self.round_to)
        norms = wide(channels.rows(wrapper.weight.detach())).norm(dim=1)
        norms = norms.masked_fill(kept, torch.inf)
        rounded = smallest_removed(norms, channels.count - wanted)
        result = {**masks, "weight_mask": torch.where(channels.spread(rounded & ~kept), 1, mask)}
        if masks.get("bias_mask") is not None:
            result["bias_mask"] = rounded.view_as(masks["bias_mask"])
        return result
