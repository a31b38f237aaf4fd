"""How much each searched value mattered for the score."""

from __future__ import annotations

import importlib.util
import math
from typing import TYPE_CHECKING, Any

from engine.experiment.search.plan import Plan

if TYPE_CHECKING:
    from optuna.study import Study

#: With fewer trials nothing can be said.
_LEAST = 8
_GROUPS = 4


def importances(study: Study, plan: Plan) -> dict[str, Any]:
    """Return the share of each parameter in the first objective's variance, and how it was found.

    With scikit-learn it is fANOVA over a random forest (Hutter, Hoos, Leyton-Brown: An Efficient
    Approach for Assessing Hyperparameter Importance, ICML 2014), as Optuna has it. Without it, or
    where that fails, it is the correlation ratio: trials are grouped by the parameter's value
    (numbers by quartile), and the variance between the groups' means, less what chance would give,
    is divided by the whole variance. Interactions are not seen.

    Returns:
        ``{"method": text, "shares": {name: share}}``, shares adding up to one, largest first;
        empty with fewer than 8 finished trials or when all scores are equal.
    """
    from optuna.trial import TrialState

    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    scores = [trial.values[0] for trial in trials]
    names = [each.name for each in plan.parameters]
    if len(trials) < _LEAST or max(scores) == min(scores) or len(names) < 2:
        return {}
    if importlib.util.find_spec("sklearn") is not None:
        from optuna.importance import FanovaImportanceEvaluator, get_param_importances

        try:
            found = get_param_importances(
                study,
                evaluator=FanovaImportanceEvaluator(seed=0),
                params=names,
                target=lambda trial: trial.values[0],
            )
            return _shares("fANOVA", found)
        except (RuntimeError, ValueError):
            pass  # such as a parameter with one value only
    ratios = {name: _ratio([t.params.get(name) for t in trials], scores) for name in names}
    return _shares("correlation ratio", ratios)


def _shares(method: str, found: dict[str, float]) -> dict[str, Any]:
    total = sum(found.values())
    if not total > 0 or not math.isfinite(total):
        return {}
    ordered = sorted(found.items(), key=lambda item: -item[1])
    return {"method": method, "shares": {name: value / total for name, value in ordered}}


def _ratio(values: list[Any], scores: list[float]) -> float:
    """Return epsilon squared (Kelley 1935): the correlation ratio without its bias, 0 at least."""
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    if numbers and len(set(values)) > _GROUPS:
        ordered = sorted(range(len(values)), key=lambda index: values[index])
        groups: list[Any] = [0] * len(values)
        for place, index in enumerate(ordered):
            groups[index] = place * _GROUPS // len(values)
    else:
        groups = list(map(str, values))
    mean = sum(scores) / len(scores)
    whole = sum((score - mean) ** 2 for score in scores)
    within = 0.0
    for group in set(groups):
        own = [score for score, g in zip(scores, groups, strict=True) if g == group]
        centre = sum(own) / len(own)
        within += sum((score - centre) ** 2 for score in own)
    free = len(scores) - len(set(groups))
    if free <= 0 or whole == 0:
        return 0.0
    return max(0.0, 1 - (within / free) / (whole / (len(scores) - 1)))
