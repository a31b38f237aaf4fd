"""Being told before and after each ``optimizer.step()``, through PyTorch's own step hooks.

PyTorch's hooks for all optimizers find those that update the model's parameters, so that an
optimizer made after ``compress()`` works, and a second one for fine-tuning. One pair of hooks
serves all compressors of the process; it holds them weakly, so that a model can die.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.utils.hooks import RemovableHandle

from engine.attach.recomputed import is_recomputed
from engine.attach.scaled_steps import is_skipped, unscale

_NONE: frozenset[int] = frozenset()


class OptimizerHooks:
    """Calls ``before`` and ``after`` around each step of the optimizer that trains ``model``.

    Args:
        model: the model.
        optimizer: the optimizer that trains it; None stands for any that updates its parameters.
        before: called before a step; None where nobody needs it.
        after: called after a step.
        moved: called after a step of an optimizer that updates the model but is not the given one,
            or of one that a scaler makes skip it.
        counts: whether it matters if a step is skipped; to know it, a device may be waited for.

    Attributes:
        spared: ids of parameters that are not to be changed by what is called after a step.
        seen: whether an optimizer has stepped (or was given), so that ``compressor.step()`` has
            nothing left to do.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | None,
        before: Callable[[], None] | None,
        after: Callable[[], None],
        moved: Callable[[], None],
        *,
        counts: bool = True,
    ) -> None:
        self.seen = optimizer is not None
        self._model = model
        #: The optimizer whose steps count. Another one that steps twice in a row takes its place:
        #: two that take turns are one minibatch, one that was made anew goes on with training.
        self._main = optimizer
        self._last: Optimizer | None = None
        self._counts = False
        self._steps = 0
        self.spared = _NONE
        self._asks = counts or before is not None
        self._before = before
        self._after = after
        self._moved = moved
        #: For each optimizer its number of parameter groups and whether one has our parameters.
        self._trains: weakref.WeakKeyDictionary[Optimizer, tuple[int, bool]] = (
            weakref.WeakKeyDictionary()
        )
        _process.add(self)

    @property
    def optimizer(self) -> Optimizer | None:
        """The optimizer whose steps count; None before one has stepped."""
        return self._main

    def remove(self) -> None:
        """Be told no more."""
        _process.discard(self)

    def before_step(
        self, optimizer: Optimizer, closure: Callable[[], Any] | None
    ) -> Callable[[], Any] | None:
        """Be told that ``optimizer`` is about to step; return the closure that it shall call.

        Gradients are made by the closure, if there is one: ``before`` is called after it.
        """
        self._counts = optimizer is self._main
        if not self._counts and self._concerns(optimizer):
            self._counts = self._main is None or self._last is optimizer
            if self._counts:
                self._main = optimizer
        if self._counts and self._asks and is_skipped(optimizer):
            self._counts = False
        before = self._before
        if before is None or not self._counts:
            return closure
        unscale(optimizer)
        if closure is None:
            before()
            return None
        given = closure

        def with_gradients() -> Any:
            loss = given()
            before()
            return loss

        return with_gradients

    def after_step(self, optimizer: Optimizer) -> None:
        """Be told that ``optimizer`` has stepped.

        One that steps within the backward pass is one of several, each with some parameters: what
        it holds may be changed now, and what follows a minibatch comes when the pass is over.
        """
        counts = self._counts
        if not (counts or self._concerns(optimizer)):
            return
        self._last = optimizer
        within_backward = is_recomputed()
        self.spared = self._spared(optimizer, within_backward)
        try:
            if counts and not within_backward:
                self.seen = True
                self._steps += 1
                self._after()
                return
            self._moved()
            if counts:
                torch.autograd.Variable._execution_engine.queue_callback(self._backward_is_over)
        finally:
            self.spared = _NONE

    def _backward_is_over(self) -> None:
        self.spared = _NONE
        self.seen = True
        self._steps += 1
        self._after()

    def _spared(self, optimizer: Optimizer, within_backward: bool) -> frozenset[int]:
        """Return the ids of the parameters that must not be changed after a step of ``optimizer``.

        Another optimizer's: a graph that its gradients need may be alive. What no optimizer has
        been seen to train may be another one's that has not stepped yet.
        """
        settled = self._steps > 1 and not within_backward
        if settled and (not self._trains or (len(self._trains) == 1 and optimizer in self._trains)):
            return _NONE
        others = [o for o, (_, ours) in self._trains.items() if ours and o is not optimizer]
        if settled and not others:
            return _NONE
        trained = {id(p) for p in self._model.parameters() if p.requires_grad}
        if within_backward:
            return frozenset(trained - _held(optimizer))
        known = _held(optimizer).union(*map(_held, others))
        unknown = trained - known if self._steps <= 1 else set()
        return frozenset(unknown.union(*map(_held, others)) - _held(optimizer))

    def _concerns(self, optimizer: Optimizer) -> bool:
        groups, known = self._trains.get(optimizer, (0, False))
        if groups != len(optimizer.param_groups):
            trained = _held(optimizer)
            known = any(id(p) in trained for p in self._model.parameters())
            self._trains[optimizer] = len(optimizer.param_groups), known
        return known


def _held(optimizer: Optimizer) -> set[int]:
    return {id(p) for group in optimizer.param_groups for p in group["params"]}


class _ProcessHooks:
    """PyTorch's process-wide hooks, registered while any compressor is attached.

    PyTorch iterates over its table of hooks while it calls them: nothing is registered or removed
    there during a step, whatever is attached, detached or collected meanwhile.
    """

    def __init__(self) -> None:
        #: Plain references: a dictionary of weak ones costs more to go through than a step's masks.
        self._told: tuple[weakref.ref[OptimizerHooks], ...] = ()
        self._handles: list[RemovableHandle] = []
        self._telling = 0

    def add(self, hooks: OptimizerHooks) -> None:
        self._told = (*self._alive(), weakref.ref(hooks))
        if not self._handles:
            self._handles = [
                register_optimizer_step_pre_hook(self._before),
                register_optimizer_step_post_hook(self._after),
            ]

    def discard(self, hooks: OptimizerHooks) -> None:
        self._told = tuple(known for known in self._alive() if known() is not hooks)
        if not self._told and not self._telling:
            for handle in self._handles:
                handle.remove()
            self._handles.clear()

    def _alive(self) -> tuple[weakref.ref[OptimizerHooks], ...]:
        return tuple(known for known in self._told if known() is not None)

    def _before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        # PyTorch passes the optimizer itself as the first positional argument.
        given = args[1] if len(args) > 1 else kwargs.get("closure")
        closure = given
        # Plain counting: this runs in every step of every optimizer of the process.
        self._telling += 1
        try:
            for known in self._told:  # a tuple: who comes or goes meanwhile makes another one
                hooks = known()
                if hooks is not None:
                    closure = hooks.before_step(optimizer, closure)
        finally:
            self._telling -= 1
        if closure is given:
            return None
        if len(args) > 1:
            return (args[0], closure, *args[2:]), kwargs
        return args, {**kwargs, "closure": closure}

    def _after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._telling += 1
        try:
            for known in self._told:
                hooks = known()
                if hooks is not None:
                    hooks.after_step(optimizer)
        finally:
            self._telling -= 1


_process = _ProcessHooks()
