"""Watching a compressor: what became of each layer so far, and the base of extensions that look."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from engine.attach.compressor import Compressor
from engine.attach.wrapper import Wrapper
from engine.hookspecs import hookimpl

_TENSORS = ("input", "weight", "output")
#: What a quantizer with an affine grid keeps on a wrapper, after the tensor's name.
_GRID = ("scale", "zero_point", "qmin", "qmax")


class LayerState(NamedTuple):
    """One layer as it is now.

    Attributes:
        name: its name in the model.
        type: the name of its class.
        sparsity: the fraction of its weights that the mask removes; None where none is masked.
        ranges: for each of "input", "weight" and "output" that is quantized on an affine grid, the
            smallest and the largest value that the grid holds.
    """

    name: str
    type: str
    sparsity: float | None
    ranges: Mapping[str, tuple[float, float]]


@torch.no_grad()
def layer_states(compressor: Compressor) -> list[LayerState]:
    """Return the state of each layer that ``compressor`` works on, in the model's order."""
    return [
        LayerState(wrapper.name, str(wrapper.type), _sparsity(wrapper), _ranges(wrapper))
        for wrapper in compressor.get_modules_wrapper()
    ]


def total_sparsity(compressor: Compressor) -> float | None:
    """Return the fraction of all weights of masked layers that is removed; None without masks."""
    masks = [wrapper.mask("weight") for wrapper in compressor.get_modules_wrapper()]
    counts = [(int((mask == 0).sum()), mask.numel()) for mask in masks if mask is not None]
    total = sum(numel for _, numel in counts)
    return sum(removed for removed, _ in counts) / total if total else None


class Watcher:
    """Base of extensions that look at a compressor while it trains, and change nothing.

    A subclass implements :meth:`look`. Only the first process of a distributed run looks.

    Args:
        every: look after each so many optimizer steps; 0: not for the sake of steps.

    Attributes:
        compressor: what is watched, None before ``compress()`` and after ``unwrap()``.
        epoch: the current epoch.
        steps: optimizer steps since training began; saved with the compressor's state.
        steps_of_epoch: those of the current epoch.
    """

    def __init__(self, every: int = 0) -> None:
        self.every = every
        self.compressor: Compressor | None = None
        self.epoch = 0
        self.steps = 0
        self.steps_of_epoch = 0

    def look(self, moment: str) -> None:
        """Look at ``self.compressor``.

        ``moment`` is "masks" (new ones are in place), "epoch" (one begins), "step" (``every`` steps
        were done), or "end" (the compressor is about to be detached).
        """
        raise NotImplementedError

    def begin(self) -> None:
        """Prepare; called once, when the compressor is attached."""

    def end(self) -> None:
        """Tidy up; called when the compressor is detached, after the last look."""

    def get_extra_state(self) -> dict[str, Any]:
        """Return what the compressor's ``state_dict`` holds for this extension."""
        return {"steps": self.steps, "steps_of_epoch": self.steps_of_epoch}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`get_extra_state`."""
        self.steps, self.steps_of_epoch = state["steps"], state["steps_of_epoch"]

    @hookimpl
    def preprocess_model(self, compressor: Compressor) -> None:
        """Begin."""
        self.compressor = compressor
        self.epoch = compressor.epoch
        if _is_first_process():
            self.begin()

    @hookimpl
    def masks_updated(self) -> None:
        """Look: masks are new."""
        self._look("masks")

    @hookimpl
    def update_epoch(self, epoch: int) -> None:
        """Look: an epoch begins."""
        self.epoch = epoch
        self._look("epoch")
        self.steps_of_epoch = 0

    @hookimpl
    def step(self) -> None:
        """Count; look if it is time."""
        self.steps += 1
        self.steps_of_epoch += 1
        if self.every and self.steps % self.every == 0:
            self._look("step")

    @hookimpl
    def restore_model(self) -> None:
        """Look for the last time, and end."""
        self._look("end")
        if self.compressor is not None and _is_first_process():
            self.end()
        self.compressor = None

    def _look(self, moment: str) -> None:
        if self.compressor is not None and _is_first_process():
            self.look(moment)


def _is_first_process() -> bool:
    distributed = torch.distributed
    return not (distributed.is_available() and distributed.is_initialized()) or (
        distributed.get_rank() == 0
    )


def _sparsity(wrapper: Wrapper) -> float | None:
    mask = wrapper.mask("weight")
    if mask is None or not mask.numel():
        return None
    return float((mask == 0).sum()) / mask.numel()


def _ranges(wrapper: Wrapper) -> dict[str, tuple[float, float]]:
    ranges = {}
    for key in _TENSORS:
        scale, zero_point, qmin, qmax = (getattr(wrapper, f"{key}_{n}", None) for n in _GRID)
        if scale is None or qmin is None or qmax is None:
            continue
        if not getattr(wrapper, f"{key}_seen", True):
            continue  # an activation that has had no range yet
        zero = 0 if zero_point is None else zero_point
        ends = torch.stack([torch.as_tensor(scale * (int(end) - zero)) for end in (qmin, qmax)])
        ranges[key] = (float(ends.min()), float(ends.max()))
    return ranges
