"""What an observer is: it is shown values and says which range a grid should cover."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from engine.quantization.scheme import Scheme


class Observer(nn.Module):
    """Finds the range of a tensor from what it is shown, one batch after the other.

    All that it knows is in buffers: it is saved, copied and moved like any module, and
    :meth:`synchronize` makes the observers of all processes of a distributed run equal.

    Attributes:
        name: what a configuration calls it.
        range: float32 (2,), the extremes of what was observed, NaN before anything was.
    """

    name: ClassVar[str]
    range: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("range", torch.full((2,), torch.nan))

    @torch.no_grad()
    def observe(self, tensor: Tensor) -> None:
        """Take ``tensor`` into account.

        Any shape and floating dtype; it is neither changed nor kept. A tensor without elements, or
        with one that is NaN or infinite, changes nothing.
        """
        if not tensor.numel():
            return
        tensor = tensor.detach().float()
        extremes = torch.stack(tensor.aminmax())
        if bool(extremes.isfinite().all()):
            if self.range.device != extremes.device:
                self.to(extremes.device)
            self.take(tensor, extremes)

    @property
    def seen(self) -> bool:
        """Whether anything was observed."""
        return not bool(self.range.isnan().any())

    @abstractmethod
    def take(self, tensor: Tensor, extremes: Tensor) -> None:
        """Take a finite float32 ``tensor`` into account, whose extremes are (2,) ``extremes``."""

    def limits(self, scheme: Scheme) -> tuple[Tensor, Tensor]:
        """Return the smallest and the largest value that a grid of ``scheme`` should cover.

        float32, without dimensions; NaN while nothing was observed.
        """
        return self.range[0], self.range[1]

    def synchronize(self) -> None:
        """Make the state that of all processes together; called in all of them at the same time."""
        if is_distributed():
            # The largest of -low and of high; who has seen nothing has no say.
            ends = torch.stack((-self.range[0], self.range[1])).nan_to_num(nan=-torch.inf)
            torch.distributed.all_reduce(ends, torch.distributed.ReduceOp.MAX)
            ends = ends.where(ends.isfinite(), torch.nan)
            self.range.copy_(torch.stack((-ends[0], ends[1])))


def is_distributed() -> bool:
    """Return whether this is one of several processes that train together."""
    distributed = torch.distributed
    return (
        distributed.is_available()
        and distributed.is_initialized()
        and distributed.get_world_size() > 1
    )
