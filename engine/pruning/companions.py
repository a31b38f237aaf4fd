"""Masks of what goes with a masked filter: the norm's scale and shift after it, a raw parameter.

A companion's mask follows from the masks of the layers that a pruner works on, so that nothing of
it is saved: an element is zero as soon as all filters that make its channel are masked.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from engine.attach.wrapper import Wrapper
from engine.pruning.channels import Channels


class Source(NamedTuple):
    """A layer whose filters make channels; ``rows`` says which filter makes each."""

    wrapper: Wrapper
    rows: Tensor


class Companion:
    """One parameter whose elements go with masked filters.

    Args:
        name: the module's dotted name.
        module: the module that holds the parameter.
        parameter_name: its name there.
        dim: the parameter's dimension that counts channels.
        places: int64 (channels,), the indices along ``dim``.
        sources: all layers that make these channels, rows int64 (channels,).
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        parameter_name: str,
        dim: int,
        places: Tensor,
        sources: list[Source],
    ) -> None:
        self.name = name
        self.module = module
        self.parameter_name = parameter_name
        self.mask: Tensor | None = None
        self._dim = dim
        self._places = places
        self._sources = sources

    @property
    def parameter(self) -> nn.Parameter | None:
        """The parameter itself."""
        return self.module._parameters.get(self.parameter_name)

    def refresh(self) -> None:
        """Make the mask anew from those of the layers."""
        parameter = self.parameter
        assert parameter is not None
        dead = torch.ones(len(self._places), dtype=torch.bool)
        for wrapper, rows in self._sources:
            mask = wrapper.mask("weight")
            if mask is None:
                dead &= False
                continue
            kept = Channels(wrapper.module).rows(mask).any(dim=1).cpu()
            dead &= ~kept[rows]
        kept = torch.ones(parameter.shape[self._dim], dtype=torch.bool)
        kept[self._places[dead]] = False
        shape = [-1 if d == self._dim else 1 for d in range(parameter.dim())]
        self.mask = torch.empty_like(parameter).copy_(kept.view(shape).expand(parameter.shape))
