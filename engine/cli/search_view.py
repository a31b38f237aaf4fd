"""What a person sees while trials run: a table on a terminal, a line for each trial in a pipe."""

from __future__ import annotations

import sys
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import printable
from engine.experiment.search.runner import Runner

if TYPE_CHECKING:
    from engine.experiment.search.trial import RunningTrial

#: Trials in the live table, and seconds between two drawings of it.
_ROWS = 12
_PAUSE = 0.5


def view_for_terminal(*, plain: bool = False) -> LinesView:
    """Return the live table if standard output is a terminal and rich is installed, else lines."""
    import importlib.util

    if not plain and sys.stdout.isatty() and importlib.util.find_spec("rich") is not None:
        return LiveView()
    return LinesView()


class LinesView:
    """One line for each trial that ends."""

    def __init__(self) -> None:
        self.runner: Runner | None = None

    def begin(self, runner: Runner) -> None:
        """Say where the experiment is, and what is done already."""
        self.runner = runner
        done = len(runner.ledger.trials())
        places, samples = len(runner.plan.parameters), runner.ledger.samples
        text = (
            f"{runner.experiment.name}: {samples} trials by {runner.search.proposer}, "
            f"{places} value{'s' if places != 1 else ''} each, in {shown(runner.folder.root)}"
        )
        print(printable(text))
        if done or runner.returned:
            again = f", {len(runner.returned)} cut off and tried again" if runner.returned else ""
            print(f"going on: {done} of {runner.ledger.samples} are done{again}")
        sys.stdout.flush()

    def started(self, trial: RunningTrial, configuration: dict[str, Any]) -> None:
        """Say nothing: most trials are short."""

    def ended(self, number: int, status: str, result: list[float] | None, seconds: float) -> None:
        """Print what became of the trial, and the best so far."""
        print(printable(self.line(number, status, result, seconds)), flush=True)

    def line(self, number: int, status: str, result: list[float] | None, seconds: float) -> str:
        """Return the line for a trial."""
        assert self.runner is not None
        values = f": {_numbers(result)}" if result is not None and status == "finished" else ""
        text = f"trial {number}: {status} after {seconds:.1f} s{values}"
        best = self.runner.ledger.best()
        if best is not None:
            text += f"   (best {_numbers(best.values)}, trial {best.number})"
        return text

    def tick(self, running: list[RunningTrial]) -> None:
        """Say nothing."""

    def end(self) -> None:
        """Be done."""


class LiveView(LinesView):
    """A table of the last trials and of those that run; needs rich."""

    def __init__(self) -> None:
        super().__init__()
        self._rows: deque[tuple[str, ...]] = deque(maxlen=_ROWS)
        self._drawn = 0.0
        self._live: Any = None

    def begin(self, runner: Runner) -> None:
        """Say where the experiment is, and open the table."""
        from rich.live import Live

        super().begin(runner)
        self._live = Live(auto_refresh=False)
        self._live.start()

    def ended(self, number: int, status: str, result: list[float] | None, seconds: float) -> None:
        """Add a row."""
        shown = _numbers(result) if result is not None else ""
        self._rows.append((str(number), printable(status), shown, f"{seconds:.0f} s"))
        self._drawn = 0.0

    def tick(self, running: list[RunningTrial]) -> None:
        """Draw the table, twice a second at most."""
        if time.monotonic() - self._drawn < _PAUSE or self._live is None:
            return
        self._drawn = time.monotonic()
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        assert self.runner is not None
        table = Table(box=None, pad_edge=False)
        for name in ("TRIAL", "STATUS", "RESULT", "TIME"):
            table.add_column(name)
        now = [
            (str(t.number), "running", _numbers(t.results[-1] if t.results else None), t.seconds)
            for t in running
        ]
        for row in [*self._rows, *((a, b, c, f"{d:.0f} s") for a, b, c, d in now)]:
            table.add_row(*map(Text, row))
        self._live.update(Group(Text(self._title()), table), refresh=True)

    def end(self) -> None:
        """Leave the table as it is and go on below it."""
        if self._live is not None:
            self._drawn = 0.0
            self.tick([])
            self._live.stop()

    def _title(self) -> str:
        assert self.runner is not None
        best = self.runner.ledger.best()
        shown = "none yet" if best is None else f"{_numbers(best.values)} (trial {best.number})"
        ledger = self.runner.ledger
        return f"{len(ledger.trials())} of {ledger.samples} trials, best {shown}"


def shown(path: Path) -> str:
    """Return a path as a person would type it: relative where it is below the current folder."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _numbers(values: list[float] | None) -> str:
    return ", ".join(f"{value:.6g}" for value in values or ())
