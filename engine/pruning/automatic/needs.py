"""What a search lacks, found before anything runs."""

from __future__ import annotations

from engine.errors import ConfigError, Problem
from engine.plugins.blame import describe
from engine.pruning.automatic.layers import removes_filters
from engine.pruning.automatic.planned import PlannedPruner
from engine.user_code.functions import UserCode


def checked_user_code(pruner: PlannedPruner) -> UserCode:
    """Return the user's functions.

    Raises:
        ConfigError: they, example inputs or the budget do not do; all problems at once.
    """
    user = UserCode(pruner.evaluator, pruner.trainer, pruner.optimizer)
    trains = pruner.needs_trainer or bool(getattr(pruner, "fine_tune_epochs", 0))
    problems = list(user.problems(evaluates=pruner.needs_evaluator, trains=trains))
    if pruner.budget != "weights" and pruner.dummy_input is None:
        needs = "needs: example inputs: a tensor, a tuple, or a dict of keyword arguments"
        problems.append(
            Problem(f"budget {pruner.budget} needs dummy_input", "/dummy_input", None, needs)
        )
    if pruner.budget in ("flops", "latency") and not removes_filters(pruner.base):
        message = (
            f"{describe(pruner.base)} removes single weights, which takes no {pruner.budget} away"
        )
        allowed = "allowed: weights, parameters; or a base_algo that removes whole filters"
        problems.append(Problem(message, "/budget", None, allowed))
    if problems:
        raise ConfigError(problems, describe(pruner))
    return user
