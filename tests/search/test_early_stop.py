"""When early stopping gives a trial up: each policy on results that are written down here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.experiment.search.early_stop import highest_expected, pruner_of

optuna.logging.set_verbosity(optuna.logging.ERROR)


def law(a: float, b: float, c: float, count: int) -> list[float]:
    return [a - b * t**-c for t in range(1, count + 1)]


def stopped_at(
    policy: Any, finished: Sequence[Sequence[float]], results: Sequence[float], target: str = "max"
) -> int | None:
    """Return the step at which a trial with ``results`` is given up, None if it is not."""
    direction = "maximize" if target == "max" else "minimize"
    study = optuna.create_study(direction=direction, pruner=pruner_of(policy))
    for one in finished:
        trial = study.ask()
        for step, value in enumerate(one):
            trial.report(value, step)
        study.tell(trial, one[-1])
    trial = study.ask()
    for step, value in enumerate(results):
        trial.report(value, step)
        if trial.should_prune():
            return step
    return None


@settings(deadline=None)  # the first call imports SciPy
@given(
    a=st.floats(0.1, 100), share=st.floats(0.1, 0.9), c=st.floats(0.2, 2), count=st.integers(5, 12)
)
def test_a_power_law_is_continued_exactly(a: float, share: float, c: float, count: int) -> None:
    expected = a - a * share * 20.0**-c
    found = highest_expected(law(a, a * share, c, count), 20)
    assert found == pytest.approx(expected, rel=1e-3)


def test_nothing_is_expected_of_few_or_useless_results() -> None:
    assert highest_expected([0.1, 0.2, 0.3], 9) == math.inf
    noise = [0.1, 0.9, 0.2, 0.8, 0.1]
    assert highest_expected(noise, 10) > 1


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_curve_that_ends_below_the_best_is_stopped(sign: float) -> None:
    target = "max" if sign > 0 else "min"
    best = [sign * v for v in law(0.9, 0.5, 1.0, 10)]
    poor = [sign * v for v in law(0.6, 0.4, 1.0, 10)]
    slow_but_better = [sign * v for v in law(1.5, 1.4, 0.4, 10)]
    assert slow_but_better[3] * sign < best[3] * sign
    assert stopped_at("curve_fitting", [best], poor, target) == 3
    assert stopped_at("curve_fitting", [best], slow_but_better, target) is None


def test_without_a_finished_trial_no_curve_is_stopped() -> None:
    assert stopped_at("curve_fitting", [], law(0.6, 0.4, 1.0, 10)) is None


def test_curves_are_looked_at_from_warmup_on_at_each_so_many_th_step() -> None:
    policy = {"policy": "curve_fitting", "warmup": 4, "steps": 2}
    poor = law(0.6, 0.4, 1.0, 10)
    assert stopped_at(policy, [law(0.9, 0.5, 1.0, 10)], poor) == 4
    policy["warmup"] = 1
    assert stopped_at(policy, [law(0.9, 0.5, 1.0, 10)], poor) == 3


@pytest.mark.parametrize(
    ("results", "target", "step"),
    [
        ([0.3, 0.49, 0.8], "max", 0),  # 0.3 < 0.8 - 0.5 * 0.8
        ([0.41, 0.42, 0.43], "max", 2),  # at step 2 the best is 0.9
        ([0.5, 0.5, 0.5], "max", None),
        ([-2.0, -1.0, -1.0], "min", None),
    ],
)
def test_bandit_stops_what_is_behind_by_its_slack(
    results: list[float], target: str, step: int | None
) -> None:
    sign = 1 if target == "max" else -1
    finished = [[sign * v for v in (0.8, 0.8, 0.9)]]
    assert stopped_at("bandit", finished, results, target) == step


def test_truncation_stops_the_worst_part() -> None:
    finished = [[v] * 2 for v in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)]
    policy = {"policy": "truncation", "truncation_percentage": 0.3}
    assert stopped_at(policy, finished, [0.25, 0.25]) == 0
    assert stopped_at(policy, finished, [0.45, 0.45]) is None
