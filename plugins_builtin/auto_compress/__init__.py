"""AutoCompress: rounds of annealing for the sparsities and ADMM for the weights.

Liu et al. 2019, "AutoCompress: An Automatic DNN Structured Pruning Framework for Ultra-High
Compression Rates", arXiv 1907.03141, section 4.
"""

from __future__ import annotations

import random
from functools import partial
from typing import Any

from engine.automatic import AlternatingDirections, AutomaticPruner, anneal


class AutoCompressPruner(AutomaticPruner):
    """In each of ``num_iterations`` rounds: anneal, train towards the plan by ADMM, mask."""

    needs_trainer = True
    num_iterations: int
    start_temperature: float
    stop_temperature: float
    cool_down_rate: float
    perturbation_magnitude: float
    tries_per_temperature: int
    admm_num_iterations: int
    admm_training_epochs: int
    rho: float

    _admm: AlternatingDirections | None = None

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
            self._train_towards(done, number)

    def before_step(self) -> None:
        """Add ADMM's penalty to the gradients."""
        if self._admm is not None:
            self._admm.add_penalty()

    def search_state(self) -> dict[str, Any]:
        """Return Z and U."""
        return self._admm.state_dict() if self._admm is not None else {}

    def set_search_state(self, state: dict[str, Any]) -> None:
        """Restore :meth:`search_state`."""
        if self._admm is not None and state:
            self._admm.load_state_dict(state)

    def _train_towards(self, plan: dict[str, float], number: int) -> None:
        self._admm = AlternatingDirections(self, plan, self.rho)
        for iteration in range(self.admm_num_iterations):
            self.once(partial(self._iterate, number, iteration))
        self._admm = None
        self.once(lambda: self.set_plan(plan))

    def _iterate(self, number: int, iteration: int) -> None:
        assert self._admm is not None
        self.train(self.admm_training_epochs, first=iteration * self.admm_training_epochs)
        self._admm.update()
        self.say(
            f"round {number}, iteration {iteration + 1}  ||W - Z|| / ||W|| "
            f"{self._admm.distance:.4f}"
        )
