"""The book of an experiment: which trials there are, what is next, and what became of each.

It keeps an Optuna study, by ask and tell. Usually the study is a file that one runner owns; in a
storage that several runners share, each looks after the trials that it began.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from engine.experiment import Experiment
from engine.experiment.outcome import FINISHED, judge
from engine.experiment.process import Ended
from engine.experiment.search import study as studies
from engine.experiment.search.best import best_trials
from engine.experiment.search.folder import Folder
from engine.experiment.search.plan import Plan
from engine.experiment.search.recovery import note, put_back, recover
from engine.experiment.search.study import (
    ATTEMPT,
    CONTINUES,
    POINT,
    RUNNER,
    SECONDS,
    STATUS,
    WITHDRAWN,
)
from engine.experiment.search.trial import STOPPED, results_in

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial, Trial


class Ledger:
    """The trials of one experiment.

    Args:
        folder: the runner's folder, which it owns.
        plan: what is searched.
        experiment: the experiment.
        storage: an address of Optuna's, such as ``postgresql://...``; None: a file in the folder.

    Raises:
        EngineError: Optuna or what the proposer needs is not installed, or the storage cannot be
            used or holds another experiment.
    """

    def __init__(
        self, folder: Folder, plan: Plan, experiment: Experiment, storage: str | None = None
    ) -> None:
        assert experiment.search is not None, "a one-time experiment has no trials"
        self.plan = plan
        self.search = experiment.search
        self.folder = folder
        self.samples = studies.n_samples(plan, experiment.data, self.search)
        self.study = studies.open_study(folder, plan, experiment, storage)
        self._distributions = studies.distributions(plan)
        failure = experiment.data.get("job_failure", {})
        self._retries = int(failure.get("job_retries", 0))
        self._shared = studies.is_shared(self.study)
        self._beginning = True  # until all of the first points are taken
        self._me = f"{socket.gethostname()}:{folder.root}"

    def trials(self) -> list[FrozenTrial]:
        """Return the trials that count: ended, and carried on by no other."""
        return studies.settled(self.study.get_trials(deepcopy=False))

    def best(self) -> FrozenTrial | None:
        """Return the best trial so far."""
        return next(iter(best_trials(self.study)), None)

    def left(self) -> int:
        """Return how many trials are still to be started, by whichever runner."""
        from optuna.trial import TrialState

        trials = self.study.get_trials(deepcopy=False)
        running = sum(trial.state == TrialState.RUNNING for trial in trials)
        return max(self.samples - len(studies.settled(trials)) - running, 0)

    def ask(self) -> Trial | None:
        """Return the next trial: one that was put back, one of the beginning, or a proposal.

        None when other runners of a shared study have taken the last ones.
        """
        from optuna.trial import TrialState

        while (trial := self._ask()) is not None and self._shared:
            trial.set_user_attr(RUNNER, self._me)
            if not self._is_surplus(trial.number):
                break
            trial.set_user_attr(STATUS, WITHDRAWN)
            self.study.tell(trial, state=TrialState.FAIL)
        return trial

    def _ask(self) -> Trial | None:
        from optuna.trial import TrialState

        if self._shared and not self.left():
            return None
        trials = self.study.get_trials(deepcopy=False) if self._beginning else []
        if self._beginning and not any(trial.state == TrialState.WAITING for trial in trials):
            done = {trial.user_attrs.get(POINT) for trial in trials}
            points = enumerate(studies.first_points(self.plan, self.search, self.samples))
            point = next((each for each in points if each[0] not in done), None)
            if point is not None:
                self.study.enqueue_trial(point[1], user_attrs={POINT: point[0]})
            elif self.search.proposer == "sequence":
                return None  # all of the grid is taken
            self._beginning = point is not None
        return self.study.ask(self._distributions)

    def _is_surplus(self, number: int) -> bool:
        """Return whether a trial was asked for only because another runner asked just then.

        Both see the same place free, or queue the same point. Of two the later one is too many,
        which both can tell from the numbers.
        """
        from optuna.trial import TrialState

        trials = self.study.get_trials(deepcopy=False)
        mine = trials[number].user_attrs
        if CONTINUES in mine:
            return False
        point = mine.get(POINT)
        if point is not None:
            return any(trial.user_attrs.get(POINT) == point for trial in trials[:number])
        begun = sum(
            trial.number < number and trial.state != TrialState.WAITING
            for trial in studies.counted(trials)
        )
        return begun >= self.samples or self.search.proposer == "sequence"

    def tell(
        self, number: int, status: str, result: list[float] | None, seconds: float
    ) -> FrozenTrial | None:
        """Say what became of a trial; return it if it has failed for good.

        One that failed is queued again as long as it has retries left.
        """
        from optuna.trial import TrialState

        trial = self.study.get_trials(deepcopy=False)[number]
        if trial.state.is_finished():
            return None  # somebody has ended it in the study, with a dashboard, say
        attempt = int(trial.user_attrs.get(ATTEMPT, 0))
        failed = status not in (FINISHED, STOPPED)
        note(self.study, trial, SECONDS, round(seconds, 3))
        if failed and attempt < self._retries:
            put_back(self.study, trial, status, attempt=attempt + 1)
            return None
        note(self.study, trial, STATUS, status)
        if failed:
            self.study.tell(number, state=TrialState.FAIL)
        elif status == STOPPED:
            self.study.tell(number, state=TrialState.PRUNED)
        else:
            assert result is not None, "a finished trial has a result"
            for label, value in zip(self.search.labels, result[1:], strict=False):
                note(self.study, trial, label, value)
            self.study.tell(number, result[: len(self.search.directions)])
        return trial if failed else None

    def give_back(self, number: int, status: str) -> None:
        """Queue a trial again whose machine was lost: that is no failure of its own."""
        put_back(self.study, self.study.get_trials(deepcopy=False)[number], status)

    def recover(self) -> list[int]:
        """Settle or put back the trials that this folder's runners began and did not tell of."""
        return recover(self.study, self.folder, self._me, self._settle)

    def _settle(self, trial: FrozenTrial, ended: Ended) -> None:
        """Tell the result of a trial whose script ended while no runner was there."""
        job = self.folder.job(trial.number)
        result = results_in(job)
        begun = trial.datetime_start.timestamp() if trial.datetime_start else None
        seconds = job.exit.stat().st_mtime - begun if begun is not None else 0.0
        self.tell(trial.number, judge(ended, result, self.search.labels or None), result, seconds)
