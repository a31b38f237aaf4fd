"""The grids of a layer, and of all layers together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from torch import nn

from engine.attach.wrapper import Wrapper
from engine.quantization.grid import Grid
from engine.quantization.observers.base import is_distributed
from engine.quantization.quant_types import QuantType
from engine.quantization.scheme import Scheme


def keep_grid(
    wrapper: Wrapper, quant_type: QuantType, scheme: Scheme, norm: nn.Module | None = None
) -> Grid:
    """Give ``wrapper`` the grid of ``quant_type`` and return it; see :class:`Grid`."""
    grid = _grids(wrapper)[quant_type.key] = Grid(wrapper, quant_type, scheme, norm)
    return grid


def average_ranges(wrappers: Sequence[Wrapper]) -> None:
    """Make the ranges of activations equal in all processes: their mean, where any has one.

    Moving averages of ranges are averaged; that is the moving average of the averages. Without
    distributed training nothing is done.
    """
    if not is_distributed():
        return
    grids = [grid for w in wrappers for key, grid in _grids(w).items() if key != "weight"]
    if not grids:
        return
    ranges = torch.stack([getattr(grid.wrapper, f"{grid.key}_range") for grid in grids])
    seen = (~ranges.isnan()).float()
    both = torch.stack((ranges.nan_to_num(nan=0.0), seen))
    torch.distributed.all_reduce(both)
    for grid, (total, count) in zip(grids, both.unbind(1), strict=True):
        if bool(count.all()):
            grid.set_range(*(total / count))


def update_waits(wrappers: Sequence[Wrapper]) -> bool:
    """Let grids begin whose delay is over, and others wait; return whether any waits."""
    waits = False
    for wrapper in wrappers:
        for grid in _grids(wrapper).values():
            grid.waits = grid.delay.steps < grid.start
            waits = waits or grid.waits
    return waits


@contextmanager
def begun(wrapper: Wrapper) -> Iterator[None]:
    """Within, the layer is quantized also where a delay is not over yet."""
    waiting = [grid for grid in _grids(wrapper).values() if grid.waits]
    try:
        for grid in waiting:
            grid.waits = False
        yield
    finally:
        for grid in waiting:
            grid.waits = True


def _grids(wrapper: Wrapper) -> dict[str, Grid]:
    """Return the grids of a layer by the name of their tensor, as what they are."""
    return cast("dict[str, Grid]", wrapper.grids)
