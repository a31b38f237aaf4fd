"""Bringing a plan to a budget: the smallest of a family of plans that reaches it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from engine.errors import EngineError

#: Halvings of the interval: far below one weight of any layer.
_STEPS = 40


def fit(
    family: Callable[[float], Mapping[str, float]],
    removed: Callable[[Mapping[str, float]], float],
    target: float,
    *,
    steps: int = _STEPS,
) -> dict[str, float]:
    """Return the plan of smallest strength in [0, 1] that removes at least ``target``.

    Args:
        family: the plan, sparsity by unit, of each strength; sparsities must not fall as it rises.
        removed: the fraction of the whole that a plan removes.
        target: the fraction to remove.
        steps: how often the interval is halved.

    Raises:
        EngineError: even the plan of strength 1 removes less.
    """
    most = family(1.0)
    reached = removed(most)
    if reached < target - 1e-9:
        raise EngineError(
            f"{target:.4g} of the whole shall go, but at most {reached:.4g} can: fewer layers are "
            "selected, or max_layer_sparsity is lower, than that needs"
        )
    low, high, best = 0.0, 1.0, dict(most)
    for _ in range(steps):
        middle = (low + high) / 2
        plan = family(middle)
        if removed(plan) >= target - 1e-9:
            high, best = middle, dict(plan)
        else:
            low = middle
    return best
