"""Pruning by sensitivity: each layer in proportion to what it tolerates alone, round by round.

Han et al. 2015, "Learning both Weights and Connections for Efficient Neural Networks", arXiv
1506.02626, section 3.3: the sensitivity of each layer decides its threshold; prune and retrain.
"""

from __future__ import annotations

from functools import partial

from engine.automatic import AutomaticPruner

#: The shares of what a layer has left that the analysis tries.
_RATIOS = tuple(tenth / 10 for tenth in range(1, 10))


class SensitivityPruner(AutomaticPruner):
    """Removes ``sparsity_per_iter`` of the whole in each round, more where it hurts less."""

    sparsity_per_iter: float
    acc_drop_threshold: float

    def search(self) -> None:
        """Analyse each unit alone, prune all in proportion, fine-tune; until the target."""
        done = dict.fromkeys((unit.name for unit in self.units), 0.0)
        metric, number = self.baseline, 0
        while (removed := self.removed(done)) < self.target - 1e-9:
            number += 1
            tolerated = {
                name: self._tolerated(name, done, metric, f"round {number}: {name}")
                for name in done
            }
            goal = min(self.target, removed + self.sparsity_per_iter)
            plan = self.fit(partial(self._raised, done, tolerated), goal)
            attempt = self.try_plan(
                plan, f"round {number}", epochs=self.candidate_epochs, keep=True
            )
            self.adopt(attempt)
            done, metric = plan, attempt.metric

    def _tolerated(self, name: str, done: dict[str, float], metric: float, what: str) -> float:
        """Return the largest share of the unit's rest whose loss costs no more than allowed."""
        largest = 0.0
        for ratio in _RATIOS:
            sparsity = done[name] + (1 - done[name]) * ratio
            if sparsity > self.max_layer_sparsity:
                break
            alone = self.try_plan({**done, name: sparsity}, f"{what} at {sparsity:.3f}")
            if self.score(metric) - self.score(alone.metric) > self.acc_drop_threshold:
                break
            largest = ratio
        return largest

    def _raised(
        self, done: dict[str, float], tolerated: dict[str, float], strength: float
    ) -> dict[str, float]:
        """Return ``done`` and shares of the rest in proportion to what is tolerated.

        Units that tolerate nothing are touched only when the others cannot give more.
        """
        least = min((t for t in tolerated.values() if t > 0), default=1.0)
        rise, rest = min(1.0, 2 * strength) / least, max(0.0, 2 * strength - 1)
        most = self.max_layer_sparsity
        plan = {}
        for name, share in tolerated.items():
            part = min(1.0, share * rise) if share > 0 else rest
            plan[name] = max(done[name], min(most, done[name] + (1 - done[name]) * part))
        return plan
