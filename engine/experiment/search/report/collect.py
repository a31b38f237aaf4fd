"""Collects everything that is known of an experiment: ``report.json``, which all else shows."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from engine.errors import EngineError
from engine.experiment.search.best import best_trials
from engine.experiment.search.folder import Folder, JobFiles
from engine.experiment.search.importance import importances
from engine.experiment.search.plan import Plan
from engine.experiment.search.study import CONTINUES, SECONDS, STATUS, continued, load_study

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial

#: Bytes at the end of a script's output in which its last line is looked for.
_TAIL = 4096


def collect(folder: Folder, storage: str | None = None) -> dict[str, Any]:
    """Return what is known of an experiment as plain values.

    ``trials`` are in order, those that were cut off or tried again included, failed ones with the
    last line that they printed; ``best`` and
    ``pareto`` are numbers of trials. ``models`` has, by the number of a trial as text, what its
    script said with ``engine.report_model``.

    Args:
        folder: the experiment's folder.
        storage: the address of the storage that its runners share, if they do.

    Raises:
        EngineError: the folder is no experiment, is damaged, its trials are in another storage, or
            Optuna is not installed.
    """
    held = folder.read()
    plan = folder.plan()
    data = held["experiment"]
    labels = list(data.get("resource_args", {}).get("multi_res_labels", ()))
    given = data.get("target", "max")
    targets = given if isinstance(given, list) else [given]
    report: dict[str, Any] = {
        "name": data["name"],
        "compressor": data["compression"].get("compressor"),
        "proposer": data.get("proposer", "random"),
        "random_seed": data.get("random_seed", 0),
        "objectives": [
            {"name": name, "target": target}
            for name, target in zip(["score", *labels], targets, strict=False)
        ],
        "parameters": [
            {"name": each.name, "pointer": each.pointer, **each.space.as_dict()}
            for each in plan.parameters
        ],
        "trials": [],
        "best": None,
        "pareto": [],
        "importances": {},
        "models": {},
    }
    folder.require(shared=storage is not None)
    if storage is None and not folder.study.exists():
        return report
    study = load_study(folder, storage)
    if study is None:
        return report
    trials = study.get_trials(deepcopy=False)
    again = continued(trials)
    report["trials"] = [_trial(each, plan, again, labels) for each in trials]
    for each in report["trials"]:
        if each["status"].startswith("failed"):
            each["last_line"] = _last_line(folder.job(each["number"]))
    best = best_trials(study)
    report["best"] = best[0].number if best else None
    report["pareto"] = [trial.number for trial in best] if len(targets) > 1 else []
    report["importances"] = importances(study, plan)
    report["seconds"] = _duration(trials)
    report["models"] = {
        str(trial.number): said
        for trial in _finished(study)
        if (said := _said(folder.job(trial.number))) is not None
    }
    return report


def _finished(study: Study) -> list[FrozenTrial]:
    from optuna.trial import TrialState

    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def _trial(trial: FrozenTrial, plan: Plan, again: set[int], labels: list[str]) -> dict[str, Any]:
    known = {each.name: each for each in plan.parameters}
    return {
        "number": trial.number,
        "state": trial.state.name.lower(),
        "status": trial.user_attrs.get(STATUS, trial.state.name.lower()),
        "values": list(trial.values) if trial.values is not None else None,
        "measures": {name: trial.user_attrs[name] for name in labels if name in trial.user_attrs},
        "parameters": {
            name: known[name].value(stored) if name in known else stored
            for name, stored in trial.params.items()
        },
        "intermediate": [trial.intermediate_values[s] for s in sorted(trial.intermediate_values)],
        "seconds": trial.user_attrs.get(SECONDS),
        "continues": trial.user_attrs.get(CONTINUES),
        "carried_on": trial.number in again,
    }


def _last_line(job: JobFiles) -> str | None:
    """Return the last line that a script printed, which of an exception is its message."""
    try:
        with job.output.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return None  # the files of another runner's trials are elsewhere
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), None)


def _duration(trials: list[FrozenTrial]) -> float | None:
    begun = [t.datetime_start for t in trials if t.datetime_start is not None]
    ended = [t.datetime_complete for t in trials if t.datetime_complete is not None]
    return (max(ended) - min(begun)).total_seconds() if begun and ended else None


def _said(job: JobFiles) -> dict[str, Any] | None:
    """Return what a trial's script said of its model; None when it said nothing readable."""
    try:
        said = json.loads(job.report.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise EngineError(f"{job.report} is damaged: {error}") from error
    keys = {"totals": dict, "measures": dict, "layers": list}
    if not isinstance(said, dict) or not all(isinstance(said.get(k), t) for k, t in keys.items()):
        raise EngineError(f"{job.report} was not written by engine.report_model")
    return said
