"""The best trials, and what is kept of them: a file to run them again, and their models."""

from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING, Any

from engine.experiment.search.folder import Folder
from engine.files import write_whole

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial


def best_trials(study: Study) -> list[FrozenTrial]:
    """Return the best trial, or all that no other one beats; best first objective first.

    Among equals the earlier one counts.
    """
    from optuna.study import StudyDirection
    from optuna.trial import TrialState

    finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if not finished:
        return []
    signs = [-1.0 if d == StudyDirection.MAXIMIZE else 1.0 for d in study.directions]

    def costs(trial: FrozenTrial) -> tuple[float, ...]:
        return tuple(s * v for s, v in zip(signs, trial.values, strict=True))

    ordered = sorted(finished, key=lambda trial: (costs(trial), trial.number))
    if len(signs) == 1:
        return ordered[:1]
    # In this order a trial can only be beaten by one before it.
    front: list[FrozenTrial] = []
    for trial in ordered:
        own = costs(trial)
        if not any(all(a <= b for a, b in zip(costs(other), own, strict=True)) for other in front):
            front.append(trial)
    return front


def write_best(folder: Folder, study: Study) -> list[FrozenTrial]:
    """Write each best configuration as a one-time experiment; return the best trials.

    ``best.json`` is the first of them. With several objectives ``pareto/<n>.json`` are all.

    Raises:
        ExportError: a file cannot be written.
    """
    best = best_trials(study)
    held = folder.read()
    for trial in best[:1]:
        _write(folder, held, trial, folder.best)
    if len(study.directions) > 1:
        pareto = folder.root / "pareto"
        shutil.rmtree(pareto, ignore_errors=True)
        pareto.mkdir()
        for trial in best:
            _write(folder, held, trial, pareto / f"{trial.number}.json")
    return best


def keep_best_models(folder: Folder, study: Study, running: set[int]) -> None:
    """Remove the models of trials that are neither best nor running."""
    models = folder.root / "models"
    if not models.is_dir():
        return
    kept = {str(trial.number) for trial in best_trials(study)} | {str(n) for n in running}
    for each in models.iterdir():
        if each.name not in kept:
            shutil.rmtree(each, ignore_errors=True)


def _write(folder: Folder, held: dict[str, Any], trial: FrozenTrial, path: Any) -> None:
    experiment = held["experiment"]
    one_time = {
        "name": f"{experiment['name']}, trial {trial.number}",
        "script": experiment["script"],
        "resource": experiment["resource"],
        # Relative, so that the whole folder can be moved.
        "workingdir": os.path.relpath(folder.root.parent, path.parent),
        "compression": folder.plan().configuration(trial.params),
    }
    kept = ("resource_args", "runtime_args")
    one_time |= {key: experiment[key] for key in kept if key in experiment}
    text = json.dumps(one_time, indent=2) + "\n"
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
