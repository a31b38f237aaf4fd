"""``engine run FILE``: a one-time experiment."""

from __future__ import annotations

import argparse
import signal
import sys
import time

from engine.cli import validate
from engine.experiment.one_time import read_experiment, run_once

#: Seconds between two updates of the line that says that the script is still running.
_PAUSE = 0.5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("file", metavar="FILE", help="an experiment, YAML or JSON")
    parser.add_argument("--quiet", action="store_true", help="do not show what the script prints")


def run(args: argparse.Namespace) -> int:
    """Check the file, run its script with it, and say what became of it."""
    validate.read(args.file)
    experiment = read_experiment(args.file)
    print(f"{experiment.name}: {' '.join(experiment.command)}", file=sys.stderr)
    # Ended from outside, the runner ends its script, too.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    progress = _Progress(enabled=args.quiet and sys.stderr.isatty())
    outcome = run_once(experiment, echo=progress if args.quiet else _echo)
    progress.end()
    print(f"output: {outcome.output}", file=sys.stderr)
    if not outcome.succeeded:
        print(f"job {outcome.job} {outcome.status}", file=sys.stderr)
        return 1
    assert outcome.result is not None
    numbers = ", ".join(f"{number:g}" for number in outcome.result)
    print(f"job {outcome.job} finished in {outcome.seconds:.0f} s: result {numbers}")
    return 0


def _stop(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


def _echo(line: str) -> None:
    sys.stdout.write(line)
    sys.stdout.flush()


class _Progress:
    """One line on a terminal that counts what the script has printed; silent in a pipe."""

    def __init__(self, enabled: bool) -> None:
        self._enabled = enabled
        self._started = self._shown = time.monotonic()
        self._lines = 0

    def __call__(self, line: str) -> None:
        self._lines += 1
        now = time.monotonic()
        if self._enabled and now - self._shown > _PAUSE:
            self._shown = now
            text = f"{now - self._started:.0f} s, {self._lines} lines: {line.strip()[:60]}"
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        """Take the line away."""
        if self._enabled:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
