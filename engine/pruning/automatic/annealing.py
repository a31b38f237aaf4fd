"""Simulated annealing over the sparsities of all units, at a fixed budget."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.pruning.automatic.pruner import AutomaticPruner
    from engine.pruning.automatic.snapshot import Attempt

#: Random plans that are tried first: the spread of their metrics is the scale of the temperature.
_FIRST = 8


def anneal(
    pruner: AutomaticPruner,
    goal: float,
    *,
    start: Mapping[str, float],
    generator: random.Random,
    start_temperature: float,
    stop_temperature: float,
    cool_down_rate: float,
    perturbation_magnitude: float,
    tries: int,
    epochs: int = 0,
    label: str = "",
) -> Attempt:
    """Return the best attempt at removing ``goal``, as Metropolis et al. 1953 accept them.

    A plan that is worse by d is accepted with the probability exp(-d / (spread T / T_0)), where
    spread is the standard deviation of the metrics of the first, random plans: a temperature means
    the same whether the evaluator returns fractions, percents or losses.

    Args:
        pruner: tries the plans.
        goal: the fraction of the whole to remove.
        start: sparsity by unit that is removed already; plans remove a part of what is left.
        generator: the source of randomness.
        start_temperature: T_0.
        stop_temperature: the search ends at it.
        cool_down_rate: factor from one temperature to the next.
        perturbation_magnitude: at T_0, how far a sparsity moves at most; falls with T.
        tries: plans at each temperature.
        epochs: how long each is trained before it is evaluated.
        label: what trials are called.
    """

    def scaled(shape: Mapping[str, float]) -> dict[str, float]:
        return pruner.fit(lambda strength: _stretched(pruner, start, shape, strength), goal)

    def attempt(shape: Mapping[str, float], what: str) -> tuple[Attempt, dict[str, float]]:
        plan = scaled(shape)
        # What the plan really takes is what the next one starts from.
        taken = {u: (s - start.get(u, 0.0)) / (1 - start.get(u, 0.0)) for u, s in plan.items()}
        return pruner.try_plan(plan, label + what, epochs=epochs), taken

    names = [unit.name for unit in pruner.units]
    best: Attempt | None = None
    current: Attempt | None = None
    place: dict[str, float] = {}
    metrics = []
    for number in range(_FIRST):
        # The first is uniform: what a search finds is no worse than that, by its own evaluator.
        shape = {name: generator.uniform(0, 1) if number else 1.0 for name in names}
        tried, taken = attempt(shape, f"random {number + 1}")
        metrics.append(pruner.score(tried.metric))
        if best is None or pruner.better(tried.metric, best.metric):
            best, current, place = tried, tried, taken
    assert best is not None
    assert current is not None
    spread = statistics.pstdev(metrics)
    temperature = start_temperature
    while temperature > stop_temperature:
        relative = temperature / start_temperature
        for number in range(tries):
            m = perturbation_magnitude * relative
            shape = {name: max(0.0, place[name] + generator.uniform(-m, m)) for name in names}
            tried, taken = attempt(shape, f"T {temperature:.3g}, {number + 1}")
            worse = pruner.score(current.metric) - pruner.score(tried.metric)
            chance = generator.uniform(0, 1)
            if worse <= 0 or (spread > 0 and chance < math.exp(-worse / (spread * relative))):
                current, place = tried, taken
            if pruner.better(tried.metric, best.metric):
                best = tried
        temperature *= cool_down_rate
    return best


def _stretched(
    pruner: AutomaticPruner, start: Mapping[str, float], shape: Mapping[str, float], strength: float
) -> dict[str, float]:
    """Return ``start`` and a part of what is left in proportion to ``shape``.

    From no strength to half of it the largest of them rises to the most that a unit may get; from
    there on the others follow, so that every budget that can be reached is.
    """
    most = pruner.max_layer_sparsity
    largest = max(max(shape.values()), 1e-9)
    plan = {}
    for name, value in shape.items():
        done = start.get(name, 0.0)
        share = value / largest
        rise = min(1.0, 2 * strength)
        rest = max(0.0, 2 * strength - 1)
        part = share * rise
        part += (1 - part) * rest
        plan[name] = max(done, min(most, done + (1 - done) * part * most))
    return plan
