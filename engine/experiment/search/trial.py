"""One trial while it runs: its script, what it has reported so far, and what became of it."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from engine.errors import EngineError
from engine.experiment.outcome import judge
from engine.experiment.protocol import result_in, result_of
from engine.experiment.search.executors import Executor, Running
from engine.experiment.search.folder import JobFiles
from engine.files import write_whole

if TYPE_CHECKING:
    from optuna.trial import Trial

#: The status of a trial that early stopping ended.
STOPPED = "stopped early"


class RunningTrial:
    """A trial whose script was started.

    Args:
        trial: Optuna's trial.
        configuration: the compression section for the script.
        job: its files.
        executor: starts the script.
        place: where.
        labels: names of the numbers after the score; None: any number of them is right.
        timeout: seconds after which it has failed, None: never.
        early_stop: whether intermediate results are told and may stop it.

    Raises:
        EngineError: the script cannot be started, or a file cannot be written.
    """

    def __init__(
        self,
        trial: Trial,
        configuration: dict[str, Any],
        job: JobFiles,
        executor: Executor,
        place: str,
        *,
        labels: Sequence[str] | None,
        timeout: float | None,
        early_stop: bool,
    ) -> None:
        self.trial = trial
        self.number = trial.number
        self.place = place
        self.job = job
        self.results: list[list[float]] = []
        self.lost = False  # together with its machine: it is to be tried elsewhere
        self._labels = labels
        self._timeout = timeout
        self._early_stop = early_stop
        text = json.dumps(configuration, indent=2)
        write_whole(job.config, lambda temporary: temporary.write_text(text, encoding="utf-8"))
        job.report.unlink(missing_ok=True)
        self._started = time.monotonic()
        self._running: Running = executor.start(place, job)

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started

    def look(self) -> str | None:
        """Read what was printed since the last look; return the status if the trial is over.

        A trial that takes too long, or that early stopping gives up, is ended here.
        """
        ended = self._running.poll()
        for line in self._printed(over=ended is not None):
            numbers = result_of(line)
            if numbers is not None and self._report(numbers) and ended is None:
                return self._end(STOPPED)
        if ended is not None:
            self._running.close()
            self.lost = ended.lost
            if ended.lost:
                return f"cut off: {ended.error}"
            return judge(ended, self.results[-1] if self.results else None, self._labels)
        if self._timeout is not None and self.seconds > self._timeout:
            return self._end(f"failed: it did not end within {self._timeout:g} s")
        return None

    def _printed(self, *, over: bool) -> Iterator[str]:
        while over and (lines := self._running.lines()):
            yield from lines
        yield from self._running.lines(rest=over)

    def wait(self, seconds: float) -> None:
        """Wait until the script ends, at most so long."""
        self._running.wait(seconds)

    def terminate(self) -> None:
        """Ask the script to end, and do not wait."""
        self._running.terminate()

    def stop(self) -> None:
        """End the script."""
        self._running.stop()
        self._running.close()

    def _report(self, numbers: list[float]) -> bool:
        """Tell the study an intermediate result; return whether the trial shall be stopped."""
        self.results.append(numbers)
        if not self._early_stop or not math.isfinite(numbers[0]):
            return False
        self.trial.report(numbers[0], len(self.results) - 1)
        return self.trial.should_prune()

    def _end(self, status: str) -> str:
        self.stop()
        return status


def results_in(job: JobFiles) -> list[float] | None:
    """Return the last result in a trial's output; None when there is none.

    Raises:
        EngineError: the output cannot be read.
    """
    try:
        with job.output.open(encoding="utf-8", errors="replace") as lines:
            return result_in(lines)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise EngineError(f"{job.output} cannot be read: {error.strerror}") from error
