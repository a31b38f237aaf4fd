"""What a runner that was killed has left behind: trials that still count as running."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from engine.experiment.orphans import alive, process_file
from engine.experiment.process import GRACE, PAUSE, Ended, read_exit
from engine.experiment.search.folder import Folder, JobFiles
from engine.experiment.search.study import (
    ATTEMPT,
    CONTINUES,
    RUNNER,
    SECONDS,
    STATUS,
    continued,
    is_shared,
)
from engine.files.job import mark

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial

#: A trial without a mark is being asked for just now, or its runner died before it marked it.
_UNMARKED = datetime.timedelta(minutes=1)


def recover(
    study: Study, folder: Folder, runner: str, settle: Callable[[FrozenTrial, Ended], None]
) -> list[int]:
    """Settle trials whose scripts had ended; put the others back; return the latter's numbers.

    Called while no other runner owns the folder, so that a trial of its that is said to run does
    not.

    Args:
        study: the experiment's study.
        folder: its folder.
        runner: what the trials of this folder's runners are marked with; in a storage that is not
            shared all are its own.
        settle: tells the study what became of a trial whose script had ended.
    """
    from optuna.trial import TrialState

    returned = []
    begun = [
        trial
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        if not is_shared(study) or _is_of(trial, runner)
    ]
    end_leftovers(folder.job(trial.number) for trial in begun)
    for trial in begun:
        ended = read_exit(folder.job(trial.number).exit)
        # Killed while nobody watched, as by a shutdown, it has said nothing of its configuration.
        killed = ended is not None and ended.code is not None and ended.code < 0
        if ended is not None and not killed:
            settle(trial, ended)
        else:
            put_back(study, trial, "interrupted")
            returned.append(trial.number)
        folder.job(trial.number).exit.unlink(missing_ok=True)
    return returned


def _is_of(trial: FrozenTrial, runner: str) -> bool:
    """Return whether a trial is a runner's, or that of one which died before it could mark it."""
    if RUNNER in trial.user_attrs:
        return bool(trial.user_attrs[RUNNER] == runner)
    begun = trial.datetime_start
    return begun is not None and datetime.datetime.now() - begun > _UNMARKED


def put_back(study: Study, trial: FrozenTrial, status: str, *, attempt: int = 0) -> None:
    """End a trial that has no result, and queue its configuration again.

    It is queued first: killed in between, the next runner finds the copy and makes no second one.
    """
    from optuna.trial import TrialState

    trials = study.get_trials(deepcopy=False)
    if trial.number not in continued(trials):
        # A runner may die while it asks: what is missing is proposed anew.
        params = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
        own = (STATUS, SECONDS, CONTINUES, RUNNER)  # whoever asks for the copy marks it
        kept = {key: value for key, value in trial.user_attrs.items() if key not in own}
        attempts = {ATTEMPT: attempt} if attempt else {}
        study.enqueue_trial(params, user_attrs={**kept, **attempts, CONTINUES: trial.number})
    note(study, trial, STATUS, status)
    study.tell(trial.number, state=TrialState.FAIL)


def note(study: Study, trial: FrozenTrial, key: str, value: Any) -> None:
    """Set a user attribute of a trial that another process asked for, before it is told."""
    # A FrozenTrial cannot, and no public call makes a Trial of one.
    study._storage.set_trial_user_attr(trial._trial_id, key, value)


def end_leftovers(jobs: Iterable[JobFiles]) -> None:
    """Wait for processes of these trials to end, and kill those that do not.

    Scripts end with their runner, within their guard's time of grace. Should the guard have been
    killed together with the runner, what its script had started is left.
    """
    listed = list(jobs)
    marks, exits = [mark(job.report) for job in listed], [job.exit for job in listed]
    deadline = time.monotonic() + GRACE + 1
    while listed and (found := alive(exits, marks)):
        if time.monotonic() > deadline:
            from engine.experiment import family

            family.kill(found)
        time.sleep(PAUSE)
    for each in exits:
        process_file(each).unlink(missing_ok=True)
