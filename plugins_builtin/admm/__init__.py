"""ADMM: the weights are trained towards sparse ones before anything is removed.

Zhang et al. 2018, "A Systematic DNN Weight Pruning Framework using Alternating Direction Method of
Multipliers", arXiv 1804.03294, section 3.
"""

from __future__ import annotations

from collections.abc import Iterable

from engine import Wrapper
from engine.automatic import ADMMSearch


class ADMMPruner(ADMMSearch):
    """Trains with the penalty rho / 2 ||W - Z + U||^2, then masks to each entry's sparsity."""

    needs_evaluator = False
    num_iterations: int
    training_epochs: int
    rho: float
    rho_growth: float

    def search(self) -> None:
        """Alternate between training and projection, then mask."""
        plan = {unit.name: self._asked(unit.wrappers) for unit in self.units}
        self.train_towards(
            plan, self.num_iterations, self.training_epochs, self.rho, growth=self.rho_growth
        )

    def _asked(self, wrappers: Iterable[Wrapper]) -> float:
        """Return the sparsity of a unit: the least that is asked of its layers."""
        return min(float(wrapper.config["sparsity"]) for wrapper in wrappers)

    def _check_reachable(self) -> None:
        """Nothing to check: each layer has its own sparsity."""
