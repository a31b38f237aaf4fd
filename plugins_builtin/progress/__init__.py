"""How far the training is, on the terminal: a bar where rich is installed, else plain text."""

from __future__ import annotations

import atexit
import importlib.util
import sys
import time
from typing import Any, Protocol, TextIO

from engine import EngineError, Watcher, total_sparsity

#: Seconds between two updates of a line.
_PAUSE = 0.2


class Display(Protocol):
    """What shows the progress."""

    def show(self, epoch: int, step: int, steps: int | None, sparsity: float | None) -> None:
        """Show step ``step`` of an epoch that will have ``steps``, if that is known."""

    def epoch_done(self, text: str) -> None:
        """Leave a line for an epoch that is over."""

    def close(self) -> None:
        """Give the terminal back."""


class Progress(Watcher):
    """Shows epoch, step, pace and sparsity on stderr; how long an epoch is, the first one tells.

    Args:
        style: "rich" for a bar, "plain" for text; "auto": rich on a terminal where it is installed.

    Raises:
        EngineError: ``style`` is "rich" and rich is not installed.
    """

    def __init__(self, style: str = "auto") -> None:
        super().__init__(every=1)
        found = importlib.util.find_spec("rich") is not None
        if style == "rich" and not found:
            raise EngineError(
                "the extension progress needs rich for style rich\n"
                "  pip install 'engine[progress]', or choose style: plain"
            )
        self.uses_rich = style == "rich" or (style == "auto" and found and sys.stderr.isatty())
        self._display: Display | None = None
        self._steps: int | None = None
        self._sparsity: float | None = None
        self._started = time.monotonic()

    def begin(self) -> None:
        """Take the terminal; it is given back at the end, or when the program ends before."""
        self._display = _Bar() if self.uses_rich else _Lines(sys.stderr)
        self._started = time.monotonic()
        atexit.register(self._close)

    def look(self, moment: str) -> None:
        """Show where training is."""
        assert self.compressor is not None
        if self._display is None:
            return
        if moment in ("masks", "end"):
            self._sparsity = total_sparsity(self.compressor)
        if moment in ("epoch", "end") and self.steps_of_epoch:
            self._display.epoch_done(self._summary(moment))
            self._steps = self.steps_of_epoch
            self._started = time.monotonic()
        elif moment == "step":
            self._display.show(self.epoch, self.steps_of_epoch, self._steps, self._sparsity)

    def end(self) -> None:
        """Give the terminal back."""
        atexit.unregister(self._close)
        self._close()

    def _summary(self, moment: str) -> str:
        done = self.epoch if moment == "end" else self.epoch - 1
        seconds = max(time.monotonic() - self._started, 1e-9)
        text = f"{self.steps_of_epoch} steps in {seconds:.1f} s"
        pace = f"({self.steps_of_epoch / seconds:.1f}/s)"
        return f"epoch {max(done, 0)}: {text} {pace}{_percent(self._sparsity)}"

    def _close(self) -> None:
        if self._display is not None:
            self._display.close()
            self._display = None


class _Lines:
    """Plain text: a line for each epoch; on a terminal also one that counts."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._live = stream.isatty()
        self._shown = 0.0

    def show(self, epoch: int, step: int, steps: int | None, sparsity: float | None) -> None:
        if self._live and time.monotonic() - self._shown > _PAUSE:
            self._shown = time.monotonic()
            of = f"/{steps}" if steps else ""
            text = f"epoch {epoch}: step {step}{of}{_percent(sparsity)}"
            print(f"\r\x1b[K{text}", end="", file=self._stream, flush=True)

    def epoch_done(self, text: str) -> None:
        erase = "\r\x1b[K" if self._live else ""
        print(f"{erase}{text}", file=self._stream, flush=True)

    def close(self) -> None:
        if self._live:
            print("\r\x1b[K", end="", file=self._stream, flush=True)


class _Bar:
    """A bar by rich, on stderr."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        self._bars: Any = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._bars.add_task("", total=None)
        self._bars.start()

    def show(self, epoch: int, step: int, steps: int | None, sparsity: float | None) -> None:
        text = f"epoch {epoch}{_percent(sparsity)}"
        self._bars.update(self._task, description=text, completed=step, total=steps)

    def epoch_done(self, text: str) -> None:
        self._bars.console.print(text, highlight=False)
        self._bars.reset(self._task)

    def close(self) -> None:
        self._bars.stop()


def _percent(sparsity: float | None) -> str:
    return "" if sparsity is None else f", {100 * sparsity:.1f} % removed"
