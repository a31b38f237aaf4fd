"""NetAdapt: in each round the one layer is shrunk whose loss costs least after a short training.

Yang et al. 2018, "NetAdapt: Platform-Aware Neural Network Adaptation for Mobile Applications",
arXiv 1804.03230, algorithm 1.
"""

from __future__ import annotations

from engine import EngineError
from engine.automatic import Attempt, AutomaticPruner

#: A smaller step than this is below one weight of any network.
_SMALLEST = 1e-7


class NetAdaptPruner(AutomaticPruner):
    """Removes a step's worth of the budget from one unit in each round."""

    needs_trainer = True
    sparsity_per_iteration: float
    step_decay: float

    def search(self) -> None:
        """Try each unit alone for the round's step, keep the best with its trained weights."""
        done = dict.fromkeys((unit.name for unit in self.units), 0.0)
        step, number = self.sparsity_per_iteration, 0
        while (removed := self.removed(done)) < self.target - 1e-9:
            number += 1
            best = self._best(done, min(self.target, removed + step), f"round {number}: ")
            if best is None:
                # No unit has that much left: smaller steps, until one has.
                step, number = step / 2, number - 1
                if step < _SMALLEST:
                    raise EngineError(
                        f"net_adapt has removed {removed:.4g} of the asked {self.target:.4g} and "
                        "finds no layer that can give more"
                    )
                continue
            self.adopt(best)
            done = best.plan
            step *= self.step_decay

    def _best(self, done: dict[str, float], goal: float, what: str) -> Attempt | None:
        best: Attempt | None = None
        for name, start in done.items():
            room = self.max_layer_sparsity - start

            def family(
                strength: float, name: str = name, start: float = start, room: float = room
            ) -> dict[str, float]:
                return {**done, name: start + room * strength}

            if room <= 0 or self.removed(family(1.0)) < goal - 1e-9:
                continue
            plan = self.fit(family, goal)
            attempt = self.try_plan(plan, what + name, epochs=self.candidate_epochs, keep=True)
            if best is None or self.better(attempt.metric, best.metric):
                best = attempt
        return best
