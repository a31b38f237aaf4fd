"""Being told before and after each ``optimizer.step()``, through PyTorch's own step hooks.

With an optimizer at hand its own hooks are used. Without one, PyTorch's hooks for all optimizers
find the one that updates the model's parameters, so that an optimizer made after ``compress()``
works too.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.utils.hooks import RemovableHandle


class OptimizerHooks:
    """Calls ``before`` and ``after`` around each step of the optimizer that trains ``model``.

    Attributes:
        seen: whether an optimizer has stepped (or was given), so that ``compressor.step()`` has
            nothing left to do.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | None,
        before: Callable[[], None] | None,
        after: Callable[[], None],
    ) -> None:
        self.seen = optimizer is not None
        self.before = before
        self.after = after
        self._handles: list[RemovableHandle] = []
        if optimizer is not None:
            if before is not None:
                self._handles.append(optimizer.register_step_pre_hook(lambda *_: before()))
            self._handles.append(optimizer.register_step_post_hook(lambda *_: after()))
            return
        watch = _Watch(self, model)
        if before is not None:
            self._handles.append(register_optimizer_step_pre_hook(watch.pre))
        self._handles.append(register_optimizer_step_post_hook(watch.post))

    def remove(self) -> None:
        """Take all hooks away."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


class _Watch:
    """What PyTorch's process-wide hooks hold: weak references only, so that a model can die."""

    def __init__(self, owner: OptimizerHooks, model: nn.Module) -> None:
        self._owner = weakref.ref(owner)
        self._model = weakref.ref(model)
        self._trains: weakref.WeakKeyDictionary[Optimizer, bool] = weakref.WeakKeyDictionary()

    def pre(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        owner = self._owner()
        if owner is not None and owner.before is not None and self._concerns(optimizer):
            owner.before()

    def post(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        owner = self._owner()
        if owner is not None and self._concerns(optimizer):
            owner.seen = True
            owner.after()

    def _concerns(self, optimizer: Optimizer) -> bool:
        known = self._trains.get(optimizer)
        if known is None:
            model = self._model()
            trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
            known = model is not None and any(id(p) in trained for p in model.parameters())
            self._trains[optimizer] = known
        return known
