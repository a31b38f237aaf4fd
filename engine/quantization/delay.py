"""What begins after some training steps, in the user's model and in copies of it."""

from __future__ import annotations

from typing import Any

from engine.attach.recomputed import is_recomputed


class Delay:
    """How many training steps are done.

    A quantizer counts optimizer steps. It knows nothing of the steps of a copy of the model: there
    the forward passes in training mode are counted, those of the grid that is first to ask.

    Attributes:
        steps: how many are done.
    """

    def __init__(self, steps: int = 0, *, counts_forwards: bool = False) -> None:
        self.steps = steps
        self._counts_forwards = counts_forwards
        self._counted: object = None

    def over(self, start: int, asking: object, training: bool) -> bool:
        """Return whether ``start`` steps are done in a copy, in each forward of what is ``asking``.

        False in the user's model, where the number of steps is no matter of the forward pass: a
        compiled one would be compiled anew for each.
        """
        if not self._counts_forwards:
            return False
        begun = self.steps >= start
        if training and not is_recomputed():
            if self._counted is None:
                self._counted = asking
            if self._counted is asking:
                self.steps += 1
        return begun

    def __deepcopy__(self, memo: dict[int, Any]) -> Delay:
        # All layers of the copied model share the copy: deepcopy notes it in memo.
        return Delay(self.steps, counts_forwards=True)

    def __reduce__(self) -> tuple[Any, ...]:
        return _copied, (self.steps,)


def _copied(steps: int) -> Delay:
    return Delay(steps, counts_forwards=True)
