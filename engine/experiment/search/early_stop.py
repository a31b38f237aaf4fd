"""When a poor trial is stopped: policies over the intermediate results that scripts report."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from optuna.pruners import BasePruner, MedianPruner, PercentilePruner
from optuna.study import StudyDirection
from optuna.trial import TrialState

from engine.errors import EngineError

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial

#: Three numbers are fitted: with fewer results nothing is left to tell how well.
_LEAST_RESULTS = 4


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


class CurveFittingPruner(BasePruner):
    """Stops a trial whose results, if they go on as they did, end below the best one.

    A simplification of Domhan, Springenberg, Hutter, "Speeding up Automatic Hyperparameter
    Optimization of Deep Neural Networks by Extrapolation of Learning Curves", IJCAI 2015: of their
    models the power law ``y(t) = a - b t^-c`` alone, by least squares. Its value at the last step,
    plus two standard errors of the fit, is the most that is hoped for. The last step is that of the
    longest finished trial; without one, with fewer than four results, or where nothing fits, no
    trial is stopped. ``min`` targets are mirrored.

    Args:
        warmup: no trial is stopped at a step below this.
        steps: look at each so-many-th step only.
    """

    def __init__(self, warmup: int, steps: int) -> None:
        self._warmup, self._steps = warmup, steps

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Return whether the trial shall be stopped now."""
        step = trial.last_step
        if step is None or step < self._warmup or (step - self._warmup) % self._steps:
            return False
        sign = 1.0 if study.direction == StudyDirection.MAXIMIZE else -1.0
        finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        last = max((each.last_step or 0 for each in finished), default=0)
        if step >= last:
            return False
        best: float = max(sign * each.values[0] for each in finished)
        results = [sign * trial.intermediate_values[at] for at in sorted(trial.intermediate_values)]
        return highest_expected(results, last + 1) < best


def highest_expected(results: Sequence[float], at: int) -> float:
    """Return what a power law fitted to ``results`` expects at the ``at``-th one, at most.

    Args:
        results: the first, second, ... result; larger is better.
        at: counts from 1.

    Returns:
        The fitted value plus two standard errors; infinity where nothing can be fitted.
    """
    import numpy as np
    from scipy.optimize import OptimizeWarning, curve_fit

    if len(results) < _LEAST_RESULTS:
        return float("inf")

    def law(t: Any, a: float, b: float, c: float) -> Any:
        return a - b * t**-c

    times = np.arange(1.0, len(results) + 1)
    start = (max(results), max(results) - results[0], 0.5)
    bounds = ((-np.inf, 0.0, 0.01), (np.inf, np.inf, 5.0))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", OptimizeWarning)  # no errors can be told
            (a, b, c), covariance = curve_fit(law, times, results, start, bounds=bounds)
    except (RuntimeError, ValueError, OptimizeWarning):
        return float("inf")
    power = at**-c
    gradient = np.array([1.0, -power, b * power * np.log(at)])
    spread = float(np.sqrt(max(0.0, gradient @ covariance @ gradient)))
    return float(law(at, a, b, c)) + 2 * spread


def pruner_of(given: str | Mapping[str, Any]) -> BasePruner:
    """Return the pruner for ``early_stop``: a policy's name, or a mapping with its numbers.

    ``median`` stops a trial whose best result is worse than the median of the others' at the same
    step; ``truncation`` one that is in the worst part (30 %); ``bandit`` see
    :class:`BanditPruner`; ``curve_fitting`` see :class:`CurveFittingPruner`. Steps count the
    results that a trial reports, from 0.

    Raises:
        EngineError: ``curve_fitting`` is asked for, and SciPy is not installed.
    """
    options: Mapping[str, Any] = {"policy": given} if isinstance(given, str) else given
    warmup, steps = int(options.get("warmup", 0)), int(options.get("steps", 1))
    if options["policy"] == "bandit":
        return BanditPruner(float(options.get("bandit_factor", 0.5)), warmup, steps)
    if options["policy"] == "curve_fitting":
        if importlib.util.find_spec("scipy") is None:
            raise EngineError(
                "early_stop curve_fitting needs SciPy\n  pip install 'engine[search]'"
            )
        return CurveFittingPruner(warmup, steps)
    share = float(options.get("truncation_percentage", 0.3))
    if options["policy"] == "truncation":
        return PercentilePruner(
            100 * (1 - share), n_startup_trials=3, n_warmup_steps=warmup, interval_steps=steps
        )
    return MedianPruner(n_startup_trials=3, n_warmup_steps=warmup, interval_steps=steps)
