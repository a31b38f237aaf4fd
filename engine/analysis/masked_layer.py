"""One layer's mask as what it removes: whole filters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from engine.pruning import Channels


class MaskedLayer:
    """A layer, the filters that its masks remove, and those of them that shall be kept after all.

    Attributes:
        module: the layer.
        removed: for each filter whether its whole row of the mask is zero.
        restored: for each filter whether it was removed and shall be kept.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        try:
            self._channels: Channels | None = Channels(module)
        except TypeError:
            self._channels = None
        count = 0 if self._channels is None else self._channels.count
        self.removed = [False] * count
        self.restored = [False] * count
        self._whole = False

    def set_mask(self, mask: Tensor) -> None:
        """Take the weight's mask; where weights share a parameter each gives its own.

        Args:
            mask: ones and zeros, of the weight's shape.
        """
        if self._channels is not None:
            rows = self._channels.rows(mask.cpu() != 0)
            kept = rows.any(dim=1)
            self._whole = bool((rows == kept[:, None]).all())
            gone = (~kept).tolist()
            self.removed = [a or b for a, b in zip(self.removed, gone, strict=True)]

    def removes(self, filters: Sequence[int]) -> bool:
        """Return whether all of these filters are removed."""
        return bool(self.removed) and all(self.removed[i] for i in filters)

    def touches(self, filters: Sequence[int]) -> bool:
        """Return whether any of these filters is removed."""
        return bool(self.removed) and any(self.removed[i] for i in filters)

    def restore(self, filters: Sequence[int]) -> None:
        """Let these filters be kept, if the mask is of whole filters."""
        if self._whole:
            for i in filters:
                self.restored[i] = self.removed[i]

    def agreed(self) -> list[bool]:
        """Return for each filter whether it is removed still."""
        return [a and not b for a, b in zip(self.removed, self.restored, strict=True)]

    def fixed(self, name: str, mask: Tensor | None) -> Tensor | None:
        """Return a copy of a mask with ones where filters were restored; dtype and device stay.

        Args:
            name: of the parameter, ``"weight"`` or ``"bias"``.
            mask: its mask.
        """
        if mask is None or self._channels is None or not self._whole:
            return None if mask is None else mask.clone()
        kept = torch.tensor(self.restored)
        if name == "weight":
            rows = self._channels.spread(kept)
        elif mask.numel() == len(kept):
            rows = kept.view_as(mask)
        else:
            return mask.clone()
        return (mask.bool() | rows.to(mask.device)).to(mask.dtype)
