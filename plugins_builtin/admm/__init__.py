"""ADMM: the weights are trained towards sparse ones before anything is removed.

Zhang et al. 2018, "A Systematic DNN Weight Pruning Framework using Alternating Direction Method of
Multipliers", arXiv 1804.03294, section 3.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from engine.automatic import AlternatingDirections, AutomaticPruner


class ADMMPruner(AutomaticPruner):
    """Trains with the penalty rho / 2 ||W - Z + U||^2, then masks to each entry's sparsity."""

    needs_evaluator = False
    needs_trainer = True
    num_iterations: int
    training_epochs: int
    rho: float
    rho_growth: float

    _admm: AlternatingDirections | None = None

    def search(self) -> None:
        """Alternate between training and projection, then mask."""
        plan = {unit.name: self._asked(unit.wrappers) for unit in self.units}
        self._admm = AlternatingDirections(self, plan, self.rho)
        for number in range(self.num_iterations):
            self.once(partial(self._iterate, number))
        self._admm = None
        self.set_plan(plan)

    def before_step(self) -> None:
        """Add the penalty's gradient; the loss stays the trainer's own."""
        if self._admm is not None:
            self._admm.add_penalty()

    def search_state(self) -> dict[str, Any]:
        """Return Z and U."""
        return self._admm.state_dict() if self._admm is not None else {}

    def set_search_state(self, state: dict[str, Any]) -> None:
        """Restore :meth:`search_state`."""
        if self._admm is not None and state:
            self._admm.load_state_dict(state)

    def _iterate(self, number: int) -> None:
        assert self._admm is not None
        self._admm.rho = self.rho * self.rho_growth**number
        self.train(self.training_epochs, first=number * self.training_epochs)
        self._admm.update()
        self.say(f"iteration {number + 1}  ||W - Z|| / ||W|| {self._admm.distance:.4f}")

    def _asked(self, wrappers: Any) -> float:
        """Return the sparsity of a unit: the least that is asked of its layers."""
        return min(float(wrapper.config["sparsity"]) for wrapper in wrappers)

    def _check_reachable(self) -> None:
        """Nothing to check: each layer has its own sparsity."""
