"""A pruner with its model and optimizer as they are now, to put back after a trial."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from engine.attach.undisturbed import State
from engine.pruning.automatic.journal import Trial
from engine.pruning.automatic.planned import PlannedPruner


class Snapshot:
    """Weights, buffers, masks, the optimizer's state, and what the pruner knows of them."""

    def __init__(self, pruner: PlannedPruner) -> None:
        self._pruner = pruner
        self._model = State(pruner.bound_model, parameters=True)
        optimizer = pruner.optimizer
        self._optimizer = None if optimizer is None else copy.deepcopy(optimizer.state_dict())
        self._masks: list[tuple[Tensor | None, Tensor | None, float | None]] = [
            (w.weight_mask, w.bias_mask, w.sparsity) for w in pruner.wrappers
        ]
        self._plan = dict(pruner.plan)
        self._changes = pruner._changes.copy()
        self._trained, self._due, self._epoch = pruner._trained, pruner._due, pruner.epoch
        self._gradients = [(p, p.grad) for p in pruner.bound_model.parameters()]

    def restore(self) -> None:
        """Put all of it back; the tensors are the same ones. It can be done again."""
        pruner = self._pruner
        self._model.restore()
        if pruner.optimizer is not None and self._optimizer is not None:
            pruner.optimizer.load_state_dict(copy.deepcopy(self._optimizer))
        for wrapper, (weight_mask, bias_mask, sparsity) in zip(
            pruner.wrappers, self._masks, strict=True
        ):
            wrapper.register_buffer("weight_mask", weight_mask)
            wrapper.register_buffer("bias_mask", bias_mask)
            wrapper.sparsity = sparsity
        for parameter, gradient in self._gradients:
            parameter.grad = gradient
        pruner.plan = dict(self._plan)
        # What masks had removed before can be put back still: the values are those of then.
        pruner._changes = self._changes.renewed()
        pruner._trained, pruner._due = self._trained, self._due
        for part in pruner._participants():
            part.epoch = self._epoch
        pruner._refresh_companions()


class Attempt:
    """A trial, and what is needed to make the model what it was in it."""

    def __init__(
        self, trial: Trial, plan: dict[str, float], epochs: int, state: Snapshot | None
    ) -> None:
        self.trial = trial
        self.metric = trial.metric
        self.removed = trial.removed
        self.plan = plan
        self.epochs = epochs
        self.state = state


@contextmanager
def restored(pruner: PlannedPruner) -> Iterator[None]:
    """Put everything back when what is inside ends."""
    before = Snapshot(pruner)
    try:
        yield
    finally:
        before.restore()
