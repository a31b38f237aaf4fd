"""Simulated annealing over the sparsities of all layers, the budget being kept throughout.

The search of Liu et al. 2019, "AutoCompress", arXiv 1907.03141, section 4.3, by itself.
"""

from __future__ import annotations

import random

from engine.automatic import AutomaticPruner, anneal


class SimulatedAnnealingPruner(AutomaticPruner):
    """Moves sparsity between layers, and accepts a worse plan the less the cooler it is."""

    start_temperature: float
    stop_temperature: float
    cool_down_rate: float
    perturbation_magnitude: float
    tries_per_temperature: int

    def search(self) -> None:
        """Anneal, and adopt the best plan of all that were tried."""
        best = anneal(
            self,
            self.target,
            start={},
            generator=random.Random(self.random_seed),
            start_temperature=self.start_temperature,
            stop_temperature=self.stop_temperature,
            cool_down_rate=self.cool_down_rate,
            perturbation_magnitude=self.perturbation_magnitude,
            tries=self.tries_per_temperature,
            epochs=self.candidate_epochs,
        )
        self.adopt(best)
