"""Runs an automatic experiment: asks for configurations, runs trials, tells their results.

One process and one thread do all of it. So every call of Optuna comes from one place, Ctrl-C has
one place to arrive, and scripts end with the thread that started them, which is the process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Protocol

from engine.errors import EngineError
from engine.experiment import Experiment
from engine.experiment.process import PAUSE
from engine.experiment.search.best import keep_best_models, write_best
from engine.experiment.search.executors import Executor, executor_of
from engine.experiment.search.folder import Folder
from engine.experiment.search.layers import layers_of
from engine.experiment.search.ledger import Ledger
from engine.experiment.search.places import Places
from engine.experiment.search.plan import Plan, expand
from engine.experiment.search.storage import errors_told
from engine.experiment.search.study import require_optuna
from engine.experiment.search.trial import RunningTrial
from engine.experiment.system import require_psutil
from engine.files.job import settings

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

#: After so many failures and not one success the script is to blame, not a configuration.
_HOPELESS = 5


class View(Protocol):
    """What a person sees of a run; see ``engine.cli.search_view``."""

    def begin(self, runner: Runner) -> None:
        """The run begins, or goes on."""

    def started(self, trial: RunningTrial, configuration: dict[str, Any]) -> None:
        """A trial was started."""

    def ended(self, number: int, status: str, result: list[float] | None, seconds: float) -> None:
        """A trial is over."""

    def tick(self, running: list[RunningTrial]) -> None:
        """Some time has passed."""


class Runner:
    """One run of an automatic experiment, from wherever an earlier one ended.

    Args:
        experiment: an automatic experiment.
        view: is told what happens.
        storage: an address of Optuna's that several runners share; None: a file in the folder.
        ask, say: talk to a person, for the resource "passive".

    Raises:
        EngineError: Optuna is missing, there are too few GPUs, or the folder is another
            experiment's.
        ConfigError: the experiment's model does not fit.
    """

    def __init__(
        self,
        experiment: Experiment,
        view: View,
        *,
        storage: str | None = None,
        ask: Callable[[str], str] = input,
        say: Callable[[str], object] = print,
    ) -> None:
        assert experiment.search is not None, "a one-time experiment has nothing to search"
        require_optuna()  # before anything is written
        require_psutil()
        self.experiment = experiment
        self.search = experiment.search
        self.folder = Folder.of(experiment)
        self._view = view
        self._storage = storage
        arguments = experiment.data.get("resource_args", {})
        self._timeout = arguments.get("timeout")
        reported = "early_stop" in arguments or arguments.get("track_intermediate_results", False)
        hyperband = self.search.proposer == "hyperband"
        self._report = (reported or hyperband) and len(self.search.directions) == 1
        failure = experiment.data.get("job_failure", {})
        self._ignore: bool | None = failure.get("ignore_fail")
        n_parallel = int(experiment.data.get("n_parallel", 1))
        self._executor: Executor = executor_of(experiment, n_parallel, ask=ask, say=say)
        self._places = Places(self._executor.places)
        self._running: dict[int, RunningTrial] = {}
        self.returned: list[int] = []

    def run(self) -> list[FrozenTrial]:
        """Run until all samples are tried; return the best trials, none when all failed.

        Raises:
            EngineError: another runner has the folder, a trial cannot be started, trials fail one
                and all, or a file cannot be written. What has ended is kept in any case.
        """
        storage = str(self.folder.study) if self._storage is None else "the shared storage"
        plan = self._plan()  # before a folder is made: the model may not load
        with self.folder.owned(), errors_told(storage):
            self.folder.begin(self.experiment, plan, shared=self._storage is not None)
            self.plan = self.folder.plan()
            self.ledger = Ledger(self.folder, self.plan, self.experiment, self._storage)
            self.folder.require_trials(len(self.ledger.study.get_trials(deepcopy=False)))
            self.returned = self.ledger.recover()
            self._left = self.ledger.left()
            self._view.begin(self)
            with self._interruptible():
                while self._fill() or self._running or self._left:
                    self._look()
            keep_best_models(self.folder, self.ledger.study, set())
            return write_best(self.folder, self.ledger.study)

    # -- inside --------------------------------------------------------------------------------

    def _plan(self) -> Plan:
        if self.folder.frozen.exists():
            return self.folder.plan()  # the model was asked when the experiment began
        return Plan.of(expand(self.experiment.section, layers_of(self.experiment)))

    def _fill(self) -> bool:
        """Start trials at free places; return whether one was started."""
        free = self._places.free({running.place for running in self._running.values()})
        starting = free[: self._left]
        for place in starting:
            self._start(place)
        return bool(starting)

    def _start(self, place: str) -> None:
        trial = self.ledger.ask()
        if trial is None:
            self._left = 0
            return
        self._left -= 1
        configuration = self.plan.configuration(trial.params)
        job = self.folder.job(trial.number)
        own = settings(job.models, save_model=self.experiment.saves_models)
        running = RunningTrial(
            trial,
            {**configuration, **own},
            job,
            self._executor,
            place,
            labels=self.search.labels or None,
            timeout=self._timeout,
            early_stop=self._report,
        )
        self._running[trial.number] = running
        self._view.started(running, configuration)

    def _look(self) -> None:
        """Look at each trial that runs; tell what is over."""
        self._view.tick(list(self._running.values()))
        over = [(r, s) for r in self._running.values() if (s := r.look()) is not None]
        for running, status in over:
            result = running.results[-1] if running.results else None
            del self._running[running.number]
            if running.lost:
                self._lose(running, status)
            else:
                self._places.worked(running.place)
                self._tell(running.number, status, result, running.seconds)
        if self._running and not over:
            next(iter(self._running.values())).wait(PAUSE)
        elif self._left and not over:
            self._places.wait()

    def _lose(self, running: RunningTrial, status: str) -> None:
        """Put a trial back whose machine was lost, and let the machine rest."""
        self.ledger.give_back(running.number, status)
        self._left = self.ledger.left()
        self._view.ended(running.number, status, None, running.seconds)
        self._places.failed(running.place, status.partition(": ")[2])

    def _tell(self, number: int, status: str, result: list[float] | None, seconds: float) -> None:
        failed = self.ledger.tell(number, status, result, seconds)
        self._left = self.ledger.left()
        self.folder.job(number).exit.unlink(missing_ok=True)
        keep_best_models(self.folder, self.ledger.study, set(self._running))
        self._view.ended(number, status, result, seconds)
        if failed is not None:
            self._give_up(number, status)

    def _give_up(self, number: int, status: str) -> None:
        """Raise EngineError when failures are to end the run."""
        place = f"  see {self.folder.job(number).output}"
        if self._ignore is False:
            raise EngineError(f"trial {number} {status}; ignore_fail is false\n{place}")
        ended = self.ledger.trials()
        if self._ignore is None and len(ended) == _HOPELESS < self.ledger.samples:
            from optuna.trial import TrialState

            if all(trial.state == TrialState.FAIL for trial in ended):
                raise EngineError(
                    f"the first {_HOPELESS} trials failed, the last one: {status}\n{place}\n"
                    "  engine run goes on from here; job_failure: {ignore_fail: true} never stops"
                )

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Whatever ends the run, end its scripts and put their trials back."""
        try:
            yield
        except BaseException:
            for running in self._running.values():
                running.terminate()  # all at once: each may take its time of grace
            for running in self._running.values():
                running.stop()
            self._running.clear()
            # Where this fails, too, such as on a full disk, the next run does it.
            with suppress(Exception):
                self.ledger.recover()
            raise
