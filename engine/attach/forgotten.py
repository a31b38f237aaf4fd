"""A compressor that was made and never attached does nothing: who trains all the same is told.

It is told at the first moment that gives it away: a call that belongs into the training loop, or a
step of the optimizer that the compressor was given.
"""

from __future__ import annotations

import sys
import warnings
import weakref
from typing import Any

from torch.optim import Optimizer

from engine.plugins.stack import describe

_INSIDE = ("engine", "torch")
_DONE = {"pruning": "pruned", "quantization": "quantized"}


class NotYetAttached:
    """Warns once, until :meth:`is_attached` is called.

    Args:
        compressor: the :class:`engine.Compressor` that is not attached yet; not kept alive.
        optimizer: its optimizer, if it has been given one.
    """

    def __init__(self, compressor: Any, optimizer: Optimizer | None) -> None:
        self._compressor = weakref.ref(compressor)
        self._quiet = False
        self._handle: Any = None
        if optimizer is not None:
            self._handle = optimizer.register_step_post_hook(self._stepped)

    def is_attached(self) -> None:
        """Warn no more."""
        self._quiet = True
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def warn(self, moment: str) -> None:
        """Say that nothing is attached, if nothing was until now, at the line of whoever trains.

        Args:
            moment: what has happened, the beginning of the message.
        """
        compressor = self._compressor()
        # A pruner inside a schedule is attached by the schedule.
        if self._quiet or compressor is None or compressor.host is not compressor:
            return
        self._quiet = True
        done = _DONE.get(compressor.kind, "compressed")
        warnings.warn(
            f"{describe(compressor)}: {moment} before compress(): nothing is attached to the "
            f"model, and nothing is {done}\n  call model = compressor.compress() first",
            stacklevel=_outside(),
        )

    def _stepped(self, *_: Any) -> None:
        # Removed at compress(): PyTorch goes through its table of hooks just now.
        self.warn("its optimizer has stepped")


def _outside() -> int:
    """Return the stacklevel, for the caller, of the first frame outside of engine and PyTorch."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals["__name__"].split(".")[0] in _INSIDE:
        level, frame = level + 1, frame.f_back
    return level
