"""Optuna, as far as the search needs it: storage, proposers, early stopping.

The storage is a plain Optuna study in SQLite: ``optuna-dashboard sqlite:///NAME.exp/study.db`` and
``optuna.load_study`` read it. Trials are asked for and told by one process.
"""

from __future__ import annotations

import itertools
import os
import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from engine.config import Search
from engine.errors import EngineError
from engine.experiment import Experiment
from engine.experiment.search.folder import Folder
from engine.experiment.search.plan import Parameter, Plan
from engine.experiment.search.storage import file_storage, read_only_storage, shared_storage

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler
    from optuna.study import Study
    from optuna.trial import FrozenTrial

#: What the runner notes about a trial, beside Optuna's own state.
STATUS, SECONDS, RUNNER = "status", "seconds", "runner"
CONTINUES, ATTEMPT, POINT = "continues", "attempt", "point"
#: The status of a trial that two runners asked for at the same time, so that one was too many.
WITHDRAWN = "withdrawn"
#: What it notes about the study.
_PLAN, _IS_SHARED = "plan", "shared"
#: Where in all ranges at once the first trials are: layers that are treated alike come first.
_DIAGONAL = (0.5, 0.75, 0.25, 0.875, 0.125)
_NEEDS = {"cmaes": ("cmaes",), "gp": ("scipy", "torch")}


def open_study(
    folder: Folder, plan: Plan, experiment: Experiment, storage: str | None = None
) -> Study:
    """Return the experiment's study, made if there is none, with its proposer.

    Args:
        folder: where its SQLite file is, without a storage.
        plan: what is searched.
        experiment: the automatic experiment.
        storage: an address of Optuna's that several runners share.

    Raises:
        EngineError: Optuna or what the proposer needs is not installed, or the storage cannot be
            used or holds another plan under this name.
    """
    optuna = require_optuna()
    search, data = experiment.search, experiment.data
    assert search is not None, "a one-time experiment has no study"
    missing = [name for name in _NEEDS.get(search.proposer, ()) if not _installed(name)]
    if missing:
        raise EngineError(
            f"the proposer {search.proposer} needs {' and '.join(missing)}\n"
            "  pip install 'engine[search]'"
        )
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    warnings.filterwarnings("ignore", module="optuna")
    study: Study = optuna.create_study(
        storage=file_storage(folder.study) if storage is None else shared_storage(storage),
        study_name=experiment.name,
        directions=["maximize" if each == "max" else "minimize" for each in search.directions],
        load_if_exists=True,
    )
    if study.user_attrs.get(_PLAN, plan.section) != plan.section:
        raise EngineError(
            f"the storage holds another experiment called {experiment.name}\n"
            "  give this one a name of its own"
        )
    begun = len(study.get_trials(deepcopy=False))
    if _PLAN not in study.user_attrs:
        # The plan last: another runner that finds it takes the rest for told.
        study.set_user_attr(_IS_SHARED, storage is not None)
        if len(search.directions) > 1:
            study.set_metric_names(["score", *search.labels[: len(search.directions) - 1]])
        study.set_user_attr(_PLAN, plan.section)
    # The same seed again would propose the same points again; so would that of another runner.
    offset = begun if storage is None else begun + hash((folder.root, os.getpid())) % 2**31
    seed = (int(data.get("random_seed", 0)) + offset) % 2**32
    study.sampler = _sampler(search.proposer, seed, int(data.get("n_samples", 10)))
    study.pruner = _pruner(search, data)
    return study


def load_study(folder: Folder, storage: str | None = None) -> Study | None:
    """Return the study of an experiment, to look at; None when its file holds no study yet.

    Raises:
        EngineError: Optuna is not installed, or the storage that runners share holds no such study.
    """
    optuna = require_optuna()
    name = folder.read()["experiment"]["name"]
    if storage is not None:
        kept = shared_storage(storage)
    elif all(os.access(path, os.W_OK) for path in (folder.root, folder.study)):
        kept = file_storage(folder.study)
    else:
        kept = read_only_storage(folder.study)
    try:
        study: Study = optuna.load_study(storage=kept, study_name=name)
    except KeyError as error:
        if storage is None:
            return None  # a runner was killed before it had made one
        raise EngineError(f'the storage holds no experiment called "{name}"') from error
    return study


def is_shared(study: Study) -> bool:
    """Return whether several runners may work on a study."""
    return bool(study.user_attrs.get(_IS_SHARED, False))


def distributions(plan: Plan) -> dict[str, BaseDistribution]:
    """Return the search space as Optuna has it."""
    return {each.name: _distribution(each) for each in plan.parameters}


def n_samples(plan: Plan, data: Mapping[str, Any], search: Search) -> int:
    """Return how many configurations are tried; a grid has no more than its points."""
    asked = data.get("n_samples")
    if search.proposer != "sequence":
        return int(asked or 10)
    points = 1
    for each in plan.parameters:
        points *= len(each.space.grid())
    return min(points, int(asked)) if asked else points


def first_points(plan: Plan, search: Search, samples: int) -> Iterator[dict[str, Any]]:
    """Yield the points that are tried before the proposer is asked, in a fixed order.

    All of a grid for ``sequence``, and none for ``random``. The others begin with a few points on
    the diagonal of the space, where all settings are at the same place of their ranges: what
    treats all layers alike is the natural thing to beat.
    """
    if search.proposer == "sequence":
        names = [each.name for each in plan.parameters]
        grids = [[each.stored(v) for v in each.space.grid()] for each in plan.parameters]
        for values in itertools.islice(itertools.product(*grids), samples):
            yield dict(zip(names, values, strict=True))
    elif search.proposer != "random" and len(plan.parameters) > 1:
        for place in _DIAGONAL[: samples // 4]:
            yield {each.name: _at(each, place) for each in plan.parameters}


def continued(trials: list[FrozenTrial]) -> set[int]:
    """Return the numbers of trials that another one carries on: interrupted or tried again."""
    return {t.user_attrs[CONTINUES] for t in trials if CONTINUES in t.user_attrs}


def settled(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """Return the trials that count: ended, carried on by no other, and not one too many."""
    return [trial for trial in counted(trials) if trial.state.is_finished()]


def counted(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """Return the trials, ended or not, that no other carries on and that are not one too many."""
    again = continued(trials)
    kept = [trial for trial in trials if trial.number not in again]
    return [trial for trial in kept if trial.user_attrs.get(STATUS) != WITHDRAWN]


def _at(parameter: Parameter, place: float) -> Any:
    one = parameter.space
    if one.kind == "choice":
        return parameter.stored(one.values[min(int(place * len(one.values)), len(one.values) - 1)])
    low, high = one.values
    value = low * (high / low) ** place if one.log else low + (high - low) * place
    if one.step is not None:
        value = low + round((value - low) / one.step) * one.step
    # Six digits are enough for people, and for where to begin.
    return round(value) if one.kind == "int" else min(max(float(f"{value:.6g}"), low), high)


def _distribution(parameter: Parameter) -> BaseDistribution:
    from optuna import distributions as kinds

    one = parameter.space
    if one.kind == "choice":
        return kinds.CategoricalDistribution(parameter.labels())
    low, high = one.values
    if one.kind == "int":
        return kinds.IntDistribution(low, high, log=one.log, step=int(one.step or 1))
    return kinds.FloatDistribution(low, high, log=one.log, step=one.step)


def _sampler(proposer: str, seed: int, samples: int) -> BaseSampler:
    from optuna import samplers

    startup = max(4, min(10, samples // 3))
    if proposer == "gp":
        return samplers.GPSampler(seed=seed, n_startup_trials=startup)
    if proposer == "cmaes":
        return samplers.CmaEsSampler(
            seed=seed, n_startup_trials=startup, warn_independent_sampling=False
        )
    if proposer == "nsga2":
        return samplers.NSGAIISampler(seed=seed, population_size=max(4, min(50, samples // 4)))
    if proposer in ("tpe", "hyperband"):
        return samplers.TPESampler(
            seed=seed, multivariate=True, constant_liar=True, n_startup_trials=startup
        )
    return samplers.RandomSampler(seed=seed)


def _pruner(search: Search, data: Mapping[str, Any]) -> Any:
    from optuna import pruners

    from engine.experiment.search.early_stop import pruner_of

    if search.proposer == "hyperband":
        return pruners.HyperbandPruner()
    given = data.get("resource_args", {}).get("early_stop")
    return pruners.NopPruner() if given is None else pruner_of(given)


def require_optuna() -> Any:
    """Return Optuna, made quiet. EngineError when it is not installed."""
    try:
        import optuna
    except ImportError as error:
        raise EngineError(
            "an automatic experiment needs Optuna\n  pip install 'engine[search]'"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def _installed(name: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(name) is not None
