"""What the tests of automatic experiments share: scripts without torch, a view that remembers."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine.experiment.search.runner import Runner

HEAD = f"""#!{sys.executable} -S
import json, os, sys, time
name = os.path.basename(sys.argv[-1]).partition(".")[0]
number = int(name) if name.isdigit() else -1
config = json.load(open(sys.argv[-1]))
x = [entry["sparsity"] for entry in config["config_list"]]
def report(*values):
    print("#Auptimizer:" + ",".join(map(repr, values)), flush=True)
"""
#: The best place is 0.3 for every layer.
SCORE = "report(1 - sum((each - 0.3) ** 2 for each in x))\n"
SPACE = {"range": [0.1, 0.9], "type": "float"}


class Silent:
    """A view that remembers what it is told."""

    def __init__(self) -> None:
        self.ends: list[tuple[int, str, list[float] | None]] = []

    def begin(self, runner: Runner) -> None:
        self.runner = runner

    def started(self, trial: Any, configuration: Any) -> None:
        pass

    def ended(self, number: int, status: str, result: list[float] | None, seconds: float) -> None:
        self.ends.append((number, status, result))

    def tick(self, running: Any) -> None:
        pass


Make = Callable[..., Path]


def alive(process: int) -> bool:
    """Return whether a process runs; one that has ended and that nobody asked for does not."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):  # the latter while it is being read
        return False
    return state != "Z"
