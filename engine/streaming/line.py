"""Batches run through a skeleton: units that are finished put out what is kept, one is loaded."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from engine.attach.undisturbed import undisturbed
from engine.calibration.replay import Replay, recorded, replaced_forward
from engine.calibration.states import LastingStates
from engine.errors import EngineError
from engine.streaming.skeleton import Skeleton
from engine.user_code.batches import Forward


class Order(NamedTuple):
    """What one batch shows of the units.

    Attributes:
        reached: names of those that run, in that order.
        unreached: those that do not.
        lean: whether each needs what the one before it put out alone.
    """

    reached: list[str]
    unreached: list[str]
    lean: bool


class Line:
    """Runs each unit for each batch once it is its turn.

    Args:
        skeleton: the model.
        batches: all of them.
        forward: calls the model with one.
        folder: where hidden states are kept.
    """

    def __init__(
        self, skeleton: Skeleton, batches: Sequence[Any], forward: Forward, folder: Path
    ) -> None:
        self._skeleton = skeleton
        self._batches = batches
        self._forward = forward
        self._folder = folder
        self._names = {module: name for name, module in skeleton.units.items()}
        self._numbers = {name: number for number, name in enumerate(skeleton.units)}
        self._replay = self._replayed(list(skeleton.units))

    def observe(self) -> Order:
        """Run the first batch through the whole model, one unit loaded at a time.

        Raises:
            EngineError: a unit runs more than once in a forward pass, or none does.
        """
        folder = self._folder / "first"
        shutil.rmtree(folder, ignore_errors=True)
        seen: dict[nn.Module, LastingStates] = {}

        def around(unit: nn.Module) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
            def make(forward: Callable[..., Any]) -> Callable[..., Any]:
                def loaded(*args: Any, **kwargs: Any) -> Any:
                    name = self._names[unit]
                    if unit in seen:
                        raise EngineError(
                            f'"{name}" runs more than once in a forward pass: such a model cannot '
                            "be compressed block by block\n  compress it in memory"
                        )
                    self._skeleton.load(unit)
                    try:
                        output = forward(*args, **kwargs)
                    finally:
                        self._skeleton.unload(unit)
                    seen[unit] = LastingStates(folder / str(self._numbers[name]), name)
                    seen[unit].put(0, [output])
                    return output

                return loaded

            return make

        with _running(self._skeleton.model):
            with replaced_forward({unit: around(unit) for unit in self._names}):
                self._forward(self._skeleton.model, self._batches[0])
            if not seen:
                raise EngineError("no block of the model ran with the first batch")
            reached = [self._names[unit] for unit in seen]
            replay = self._replayed(reached)
            replay.look_ahead(seen, list(seen))
        shutil.rmtree(folder, ignore_errors=True)
        return Order(reached, [n for n in self._numbers if n not in reached], replay.lean)

    def follow(self, order: Order, done: Sequence[str]) -> None:
        """Go on behind units that are done, whose hidden states lie in the folder."""
        self._replay = self._replayed(order.reached)
        self._replay.lean = order.lean
        for name in done:
            self._replay.keep(self._skeleton.units[name], self._states(self._skeleton.units[name]))

    def up_to(self, name: str) -> Forward:
        """Return what runs the model with the batch of a number, through one unit and no further.

        For a unit that no batch reaches it runs nothing.
        """
        unit = self._skeleton.units[name]

        def forward(model: nn.Module, number: Any) -> None:
            with recorded({unit: []}, stop=True):
                self._replay.run(number)

        return forward

    def finish(self, name: str) -> None:
        """Note what a unit puts out as it is now; it does not run from here on."""
        unit = self._skeleton.units[name]
        with _running(self._skeleton.model):
            self._replay.keep(unit, self._replay.outputs(unit))

    def forget_before(self, name: str) -> None:
        """Remove what no later unit reads."""
        self._replay.forget_before(self._skeleton.units[name])

    def _replayed(self, names: Sequence[str]) -> Replay:
        units = [self._skeleton.units[name] for name in names]
        model = self._skeleton.model
        return Replay(model, self._batches, self._forward, units, self._states)

    def _states(self, unit: nn.Module) -> LastingStates:
        name = self._names[unit]
        return LastingStates(self._folder / str(self._numbers[name]), name)


@contextmanager
def _running(model: nn.Module) -> Iterator[None]:
    with undisturbed(model), torch.compiler.set_stance("force_eager"):
        yield
