"""Curves of each layer's sparsity and ranges for TensorBoard; needs ``engine[tensorboard]``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from engine import EngineError, Watcher, layer_states, total_sparsity


class TensorBoard(Watcher):
    """Writes scalars over optimizer steps: ``sparsity/LAYER`` and ``range/LAYER/TENSOR/low|high``.

    Args:
        folder: where the event file goes; a run has a folder of its own.
        every: write after each so many optimizer steps, too; 0: when masks are new, at the
            beginning of each epoch, and at the end.

    Raises:
        EngineError: when training begins, that TensorBoard is not installed, or that the folder
            cannot be written.
    """

    def __init__(self, folder: str = "runs", every: int = 0) -> None:
        super().__init__(every)
        self.folder = folder
        self._writer: Any = None

    def begin(self) -> None:
        """Open an event file."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise EngineError(
                f"the extension tensorboard needs TensorBoard ({error})\n"
                "  pip install 'engine[tensorboard]'"
            ) from error
        self.folder = os.path.abspath(self.folder)  # whatever folder the program goes to
        try:
            self._writer = SummaryWriter(self.folder)
        except OSError as error:
            raise EngineError(f"tensorboard: cannot write {self.folder}: {error}") from error

    def look(self, moment: str) -> None:
        """Write the scalars of this step."""
        assert self.compressor is not None
        whole = total_sparsity(self.compressor)
        if whole is not None:
            self._writer.add_scalar("sparsity/(model)", whole, self.steps)
        for state in layer_states(self.compressor):
            layer = state.name or "(model)"
            if state.sparsity is not None:
                self._writer.add_scalar(f"sparsity/{layer}", state.sparsity, self.steps)
            for key, (low, high) in state.ranges.items():
                self._writer.add_scalar(f"range/{layer}/{key}/low", low, self.steps)
                self._writer.add_scalar(f"range/{layer}/{key}/high", high, self.steps)
        self._writer.flush()

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a step; what an earlier run wrote beyond it is shown no longer."""
        super().set_extra_state(state)
        if self._writer is not None:
            self._writer.close()
            self._writer = type(self._writer)(self.folder, purge_step=self.steps + 1)

    def end(self) -> None:
        """Close the event file."""
        self._writer.close()
        self._writer = None
