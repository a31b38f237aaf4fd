"""What became of a job: whether its script ended well, and what it reported."""

from __future__ import annotations

import math
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from engine.experiment.process import Ended

FINISHED = "finished"


class Outcome(NamedTuple):
    """What became of a job. ``result`` is None when the script reported none, or not well."""

    job: int
    status: str
    result: list[float] | None
    exit_code: int | None
    seconds: float
    output: Path

    @property
    def succeeded(self) -> bool:
        """Whether the script ended well and reported a result."""
        return self.status == FINISHED


def judge(ended: Ended, result: Sequence[float] | None, labels: Sequence[str] | None = None) -> str:
    """Return the status of a job: "finished", or "failed: " and why.

    A script that reported a score and failed after that has failed.

    Args:
        ended: how the script ended.
        result: the last result that it reported.
        labels: the names of the numbers after the score; None: any number of them is right.
    """
    if ended.error is not None:
        return f"failed: {ended.error}"
    if ended.code is not None and ended.code < 0:
        return f"failed: killed by {_signal(-ended.code)}"
    if ended.code != 0:
        return f"failed: exit code {ended.code}"
    if result is None:
        return "failed: the script ended without engine.print_result(score)"
    if not all(map(math.isfinite, result)):
        return f"failed: the result is not finite: {', '.join(map(str, result))}"
    if labels is not None and len(result) != len(labels) + 1:
        names = ", ".join(["the score", *labels])
        return f"failed: {len(result)} numbers were reported, not {len(labels) + 1}: {names}"
    return FINISHED


def _signal(number: int) -> str:
    try:
        return f"{signal.Signals(number).name}"
    except ValueError:
        return f"signal {number}"
