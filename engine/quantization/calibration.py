"""Ranges of activations from a person's batches."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from engine.attach.wrapper import Wrapper
from engine.errors import EngineError
from engine.quantization.observers import Observer
from engine.user_code.batches import Forward, batches_in, call_or_explain


@torch.no_grad()
def run_batches(model: nn.Module, batches: Iterable[Any], forward: Forward | None = None) -> int:
    """Run ``batches`` through ``model`` in evaluation mode, then give it back its modes.

    Args:
        model: the model.
        batches: a loader, or any iterable of what ``forward`` takes.
        forward: calls the model with a batch; by itself without it.

    Returns:
        How many batches there were.

    Raises:
        EngineError: there were none, or one does not go through the model (what ``forward`` raises
            is passed on).
    """
    call = call_or_explain if forward is None else forward
    given = batches_in(batches, "calibration")
    training = [module for module in model.modules() if module.training]
    count = 0
    try:
        model.eval()
        for batch in given:
            call(model, batch)
            count += 1
    finally:
        for module in training:
            module.training = True
    return count


class Calibration:
    """Observers for all activations of some layers, while batches run through the model.

    Args:
        wrappers: the layers; their grids get the ranges.
        make_observer: called for each activation.
    """

    def __init__(self, wrappers: Sequence[Wrapper], make_observer: Callable[[], Observer]) -> None:
        self._observers = {
            (wrapper, key): make_observer()
            for wrapper in wrappers
            for key in wrapper.grids
            if key != "weight"
        }
        self._batch = 0

    def observe(self, tensor: Tensor, wrapper: Wrapper, key: str) -> None:
        """Take one activation into account.

        Raises:
            EngineError: it holds NaN or infinity; layer and batch are named.
        """
        if not bool(tensor.isfinite().all()):
            raise EngineError(
                f'the {key} of layer "{wrapper.name}" ({wrapper.type}) holds NaN or infinity in '
                f"calibration batch {self._batch}\n  check the batch, and the model in float32"
            )
        self._observers[wrapper, key].observe(tensor)

    def run(self, model: nn.Module, batches: Iterable[Any], forward: Forward | None = None) -> None:
        """Run the batches and set the ranges; see :func:`run_batches`.

        Where weights alone are quantized there is no range to set, and no batch is run.

        Raises:
            EngineError: there are no batches, an activation is not finite, or none is reached; no
                range is changed.

        Warns:
            UserWarning: some activations were not reached; they stay in float.
        """
        if not self._observers:
            return
        run_batches(model, self._counted(batches_in(batches, "calibration")), forward)
        for observer in self._observers.values():
            observer.synchronize()
        unseen = [f'{k} of layer "{w.name}"' for (w, k), o in self._observers.items() if not o.seen]
        if unseen:
            self._tell(unseen)
        for (wrapper, key), observer in self._observers.items():
            if observer.seen:
                grid = wrapper.grids[key]
                grid.set_range(*observer.limits(grid.scheme))

    def _tell(self, unseen: list[str]) -> None:
        """Say which activations have no range: of some, as of an expert that nothing was sent to.

        Raises:
            EngineError: none has one.
        """
        missed = f"no calibration batch reached the {', the '.join(unseen)}"
        more = "a layer that the model does not call is left out with exclude: true"
        if len(unseen) == len(self._observers):
            raise EngineError(f"{missed}\n  {more}")
        warnings.warn(
            f"{missed}: these stay in float, weights are quantized\n"
            f"  give batches that reach them; {more}",
            stacklevel=4,
        )

    def _counted(self, batches: Iterable[Any]) -> Iterator[Any]:
        for number, batch in enumerate(batches):
            self._batch = number
            yield batch
