"""When a poor trial is stopped: policies over the intermediate results that scripts report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from optuna.pruners import BasePruner, MedianPruner, PercentilePruner
from optuna.study import StudyDirection

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial


class BanditPruner(BasePruner):
    """Stops a trial whose best result so far is far behind the best of all others.

    With slack s, better meaning larger, own and best the largest results up to the same step:
    stopped when ``own < best - s * |best|``. For a positive score and s = 0.5 that is
    Auptimizer's rule ``own < 0.5 * best``; the absolute value makes it one for negative scores,
    too. ``min`` targets are mirrored.

    Args:
        slack: s, from 0 (only the best so far goes on) to 1.
        warmup: no trial is stopped at a step below this.
        steps: look at each so-many-th step only.
    """

    def __init__(self, slack: float, warmup: int, steps: int) -> None:
        self._slack, self._warmup, self._steps = slack, warmup, steps

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Return whether the trial shall be stopped now."""
        step = trial.last_step
        if step is None or step < self._warmup or (step - self._warmup) % self._steps:
            return False
        sign = 1.0 if study.direction == StudyDirection.MAXIMIZE else -1.0
        own = max(sign * value for value in trial.intermediate_values.values())
        others = [
            sign * value
            for other in study.get_trials(deepcopy=False)
            if other.number != trial.number
            for at, value in other.intermediate_values.items()
            if at <= step
        ]
        if not others:
            return False
        best = max(others)
        return own < best - self._slack * abs(best)


def pruner_of(given: str | Mapping[str, Any]) -> BasePruner:
    """Return the pruner for ``early_stop``: a policy's name, or a mapping with its numbers.

    ``median`` stops a trial whose best result is worse than the median of the others' at the same
    step; ``truncation`` one that is in the worst part (30 %); ``bandit`` see
    :class:`BanditPruner`. Steps count the results that a trial reports, from 0.
    """
    options: Mapping[str, Any] = {"policy": given} if isinstance(given, str) else given
    warmup, steps = int(options.get("warmup", 0)), int(options.get("steps", 1))
    if options["policy"] == "bandit":
        return BanditPruner(float(options.get("bandit_factor", 0.5)), warmup, steps)
    share = float(options.get("truncation_percentage", 0.3))
    if options["policy"] == "truncation":
        return PercentilePruner(
            100 * (1 - share), n_startup_trials=3, n_warmup_steps=warmup, interval_steps=steps
        )
    return MedianPruner(n_startup_trials=3, n_warmup_steps=warmup, interval_steps=steps)
