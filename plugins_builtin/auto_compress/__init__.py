"""AutoCompress: rounds of annealing for the sparsities and ADMM for the weights.

Liu et al. 2019, "AutoCompress: An Automatic DNN Structured Pruning Framework for Ultra-High
Compression Rates", arXiv 1907.03141, section 4.
"""

from __future__ import annotations

import random

from engine.automatic import ADMMSearch, anneal


class AutoCompressPruner(ADMMSearch):
    """In each of ``num_iterations`` rounds: anneal, train towards the plan by ADMM, mask."""

    num_iterations: int
    start_temperature: float
    stop_temperature: float
    cool_down_rate: float
    perturbation_magnitude: float
    tries_per_temperature: int
    admm_num_iterations: int
    admm_training_epochs: int
    rho: float

    def search(self) -> None:
        """Remove the same share of what is left in each round: 1 - (1 - s)^(k / n) by the k-th."""
        generator = random.Random(self.random_seed)
        done: dict[str, float] = {}
        for number in range(1, self.num_iterations + 1):
            best = anneal(
                self,
                1 - (1 - self.target) ** (number / self.num_iterations),
                start=done,
                generator=generator,
                start_temperature=self.start_temperature,
                stop_temperature=self.stop_temperature,
                cool_down_rate=self.cool_down_rate,
                perturbation_magnitude=self.perturbation_magnitude,
                tries=self.tries_per_temperature,
                epochs=self.candidate_epochs,
                label=f"round {number}: ",
            )
            done = best.plan
            self.train_towards(
                done,
                self.admm_num_iterations,
                self.admm_training_epochs,
                self.rho,
                label=f"round {number}, ",
            )
