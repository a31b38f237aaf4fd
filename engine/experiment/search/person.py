"""Trials that a person runs: the resource "passive"."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from engine.errors import EngineError
from engine.experiment import Experiment
from engine.experiment.process import Ended
from engine.experiment.protocol import MARK, result_of
from engine.experiment.search.folder import JobFiles
from engine.experiment.system import joined
from engine.files import write_whole


class Person:
    """A person runs the script and types the result: the resource "passive"."""

    places: Sequence[str] = ("person",)

    def __init__(
        self, experiment: Experiment, ask: Callable[[str], str], say: Callable[[str], object]
    ) -> None:
        self._experiment, self._ask, self._say = experiment, ask, say

    def start(self, place: str, job: JobFiles) -> _Typed:
        """Say what to run, and ask for the result until one is given; nothing: it failed."""
        command = joined([*self._experiment.command, str(job.config)])
        self._say(f"run this, then type the result, or nothing if it failed: {command}")
        while True:
            try:
                line = f"{MARK}{self._ask('result: ').strip()}\n"
            except EOFError:
                raise EngineError("nobody types a result; engine run goes on from here") from None
            if line == f"{MARK}\n":
                line = ""
            if not line or result_of(line) is not None:
                break
            self._say("a number is needed, or some with commas between")
        write_whole(job.output, lambda temporary: temporary.write_text(line, encoding="utf-8"))
        return _Typed(line)


class _Typed:
    def __init__(self, line: str) -> None:
        self._lines = [line]

    def poll(self) -> Ended | None:
        return Ended(0)

    def wait(self, seconds: float = 0.0) -> None:
        pass

    def lines(self, *, rest: bool = False) -> list[str]:
        lines, self._lines = self._lines, []
        return lines

    def terminate(self) -> None:
        pass

    def stop(self) -> None:
        pass

    def close(self) -> None:
        pass
