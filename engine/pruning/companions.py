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

    def refresh(self, kept: KeptRows) -> None:
        """Make the mask anew from those of the layers, of which ``kept`` knows the rows."""
        parameter = self.parameter
        assert parameter is not None
        dead = torch.ones(len(self._places), dtype=torch.bool)
        for wrapper, rows in self._sources:
            left = kept.of(wrapper)
            dead &= False if left is None else ~left[rows]
        stays = torch.ones(parameter.shape[self._dim], dtype=torch.bool)
        stays[self._places[dead]] = False
        shape = [-1 if d == self._dim else 1 for d in range(parameter.dim())]
        self.mask = torch.empty_like(parameter).copy_(stays.view(shape).expand(parameter.shape))


class KeptRows:
    """Which filters the masks of layers leave, looked up once for each layer."""

    def __init__(self) -> None:
        self._known: dict[Wrapper, Tensor | None] = {}

    def of(self, wrapper: Wrapper) -> Tensor | None:
        """Return which filters of a layer stay, bool (filters,); None if it has no mask."""
        if wrapper not in self._known:
            mask = wrapper.mask("weight")
            left = None if mask is None else Channels(wrapper.module).left(mask).cpu()
            self._known[wrapper] = left
        return self._known[wrapper]
