"""What a search asks of its user: a number for a model, and an epoch of training."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn
from torch.optim import Optimizer

from engine.errors import Problem
from engine.user_code.metric import number

#: What a trainer may take beside the model. ``criterion`` and ``callback`` are for trainers that
#: were written for NNI: cross entropy, and a function that does nothing.
_OFFERED = ("optimizer", "epoch", "criterion", "callback")


class UserCode:
    """The functions that a user gives a search.

    Args:
        evaluator: ``evaluator(model)`` returns a number; it may run the model on any data.
        trainer: ``trainer(model, optimizer, epoch)`` trains for one epoch. It takes the model first
            and any of ``optimizer``, ``epoch``, ``criterion`` and ``callback`` by name.
        optimizer: the optimizer that the trainer gets.
    """

    def __init__(self, evaluator: Any, trainer: Any, optimizer: Optimizer | None) -> None:
        self._evaluator = evaluator
        self._trainer = trainer
        self._optimizer = optimizer
        self._named: tuple[str, ...] = ()

    def problems(self, *, evaluates: bool, trains: bool) -> Iterator[Problem]:
        """Yield what is missing or cannot be called, before anything runs.

        Args:
            evaluates: whether the search needs an evaluator.
            trains: whether it needs a trainer.
        """
        if evaluates:
            needs = "needs: a function evaluator(model) that returns a number"
            yield from _callable_problems("evaluator", self._evaluator, needs, 1)
        if trains or self._trainer is not None:
            needs = "needs: a function trainer(model, optimizer, epoch) that trains for one epoch"
            yield from _callable_problems("trainer", self._trainer, needs, None)
            if callable(self._trainer):
                yield from self._trainer_problems(needs)

    def evaluate(self, model: nn.Module) -> float:
        """Return the evaluator's number.

        Raises:
            EngineError: it is no number, or NaN.
        """
        return number(self._evaluator(model), "evaluator")

    def train(self, model: nn.Module, epoch: int) -> None:
        """Train for one epoch."""
        offers: dict[str, Any] = {
            "optimizer": self._optimizer,
            "epoch": epoch,
            "criterion": nn.CrossEntropyLoss(),
            "callback": _nothing,
        }
        self._trainer(model, **{name: offers[name] for name in self._named})

    def _trainer_problems(self, needs: str) -> Iterator[Problem]:
        try:
            parameters = list(inspect.signature(self._trainer).parameters.values())
        except (TypeError, ValueError):  # written in C, or a mock
            self._named = ("optimizer", "epoch")
            return
        if not parameters:
            yield Problem("trainer takes no model", "/trainer", None, needs)
            return
        named = [p for p in parameters[1:] if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        anything = any(p.kind is p.VAR_KEYWORD for p in parameters)
        wanted = [p.name for p in named if p.name in _OFFERED and p.kind is not p.POSITIONAL_ONLY]
        self._named = tuple(wanted) if wanted or not anything else ("optimizer", "epoch")
        for p in named:
            if p.name not in _OFFERED and p.default is p.empty:
                fix = f"{needs}; bind other arguments with functools.partial"
                message = f'trainer has the parameter "{p.name}", which a search does not have'
                yield Problem(message, "/trainer", None, fix)
        needed = any(p.name == "optimizer" and p.default is p.empty for p in named)
        if needed and self._optimizer is None:
            yield Problem(
                "trainer takes an optimizer, but none was given",
                "/optimizer",
                None,
                "give the pruner optimizer=, or let the trainer make its own",
            )


def _nothing(*args: Any, **kwargs: Any) -> None:
    """Stand in for NNI's callback: penalties are added by hooks of the optimizer."""


def _callable_problems(
    name: str, value: Any, needs: str, arguments: int | None
) -> Iterator[Problem]:
    if value is None:
        yield Problem(f"{name} is missing", f"/{name}", None, needs)
        return
    if not isinstance(value, Callable):  # type: ignore[arg-type]
        yield Problem(f"{name} is a {type(value).__name__}", f"/{name}", None, needs)
        return
    if arguments is None:
        return
    try:
        inspect.signature(value).bind(*[None] * arguments)
    except TypeError as error:
        yield Problem(f"{name} cannot be called with the model: {error}", f"/{name}", None, needs)
    except ValueError:  # no signature to look at
        return
