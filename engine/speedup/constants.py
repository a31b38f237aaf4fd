"""Dropping what removed channels leave behind: a norm's shift, a bias."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from engine.speedup.groups import Slice, channel_blocks


@torch.no_grad()
def drop_constants(model: nn.Module, args: Any, kwargs: Mapping[str, Any] | None = None) -> int:
    """Set biases, scales and shifts of channels to zero whose filters are zero in every layer.

    A filter of zeros followed by a batch norm still gives a constant, which a padded convolution
    does not see as one. Without it the channel can be removed; the model's outputs change, as the
    masked model's do when its norms are masked with its filters.

    Args:
        model: a model whose masks have been multiplied into its weights; changed in place.
        args: example inputs: one tensor, or a tuple of positional arguments.
        kwargs: keyword arguments.

    Returns:
        the number of channels that were silenced.
    """
    silenced = 0
    for block in channel_blocks(model, args, kwargs):
        for channel in block.channels:
            makers = [s for s in channel if s.makes]
            numbers = [s for s in channel if s.tensor.dim() == 1 and s.is_parameter]
            if makers and all(_is_zero(s) for s in makers) and not all(map(_is_zero, numbers)):
                silenced += 1
                for each in numbers:
                    each.tensor.index_fill_(0, _index(each), 0)
    return silenced


def _index(part: Slice) -> torch.Tensor:
    return torch.tensor(part.indices, device=part.tensor.device)


def _is_zero(part: Slice) -> bool:
    return not bool(part.tensor.index_select(part.dim, _index(part)).any())
