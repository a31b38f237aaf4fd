"""``engine run FILE``: an experiment, one-time or automatic."""

from __future__ import annotations

import argparse
import signal
import sys
import time

from engine.cli import validate
from engine.errors import EngineError, printable
from engine.experiment import Experiment, read_experiment
from engine.experiment.one_time import run_once
from engine.experiment.system import joined

#: Seconds between two updates of the line that says that the script is still running.
_PAUSE = 0.5
#: Signals that end a process; no system has all of them.
_STOPS = ("SIGTERM", "SIGHUP", "SIGBREAK")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("file", metavar="FILE", help="an experiment, YAML or JSON")
    parser.add_argument(
        "--automatic",
        action="store_true",
        help="demand an automatic experiment; a file with a search space is one without it, too",
    )
    parser.add_argument(
        "--storage",
        metavar="URL",
        help="an Optuna storage that runners on several machines share, such as postgresql://...",
    )
    parser.add_argument(
        "--quiet", action="store_true", help="do not show what a script prints, nor a live table"
    )


def run(args: argparse.Namespace) -> int:
    """Check the file, run its script with it, and say what became of it."""
    document = validate.read_document(args.file)
    experiment = read_experiment(document, automatic=args.automatic or None)
    validate.tell_notes(experiment)
    # Ended from outside, the runner ends its scripts, too.
    for name in _STOPS:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _stop)
    if experiment.search is not None:
        return _search(experiment, args.storage, quiet=args.quiet)
    if args.storage is not None:
        raise EngineError("--storage is for automatic experiments; this one runs once")
    return _once(experiment, quiet=args.quiet)


def _once(experiment: Experiment, *, quiet: bool) -> int:
    print(printable(f"{experiment.name}: {' '.join(experiment.command)}"), file=sys.stderr)
    progress = _Progress(enabled=quiet and sys.stderr.isatty())
    outcome = run_once(experiment, echo=progress if quiet else _echo, ask=_ask)
    progress.end()
    print(f"output: {outcome.output}", file=sys.stderr)
    if not outcome.succeeded:
        print(f"job {outcome.job} {outcome.status}", file=sys.stderr)
        return 1
    assert outcome.result is not None
    numbers = ", ".join(f"{number:g}" for number in outcome.result)
    print(f"job {outcome.job} finished in {outcome.seconds:.0f} s: result {numbers}")
    return 0


def _search(experiment: Experiment, storage: str | None, *, quiet: bool) -> int:
    from engine.cli.search_view import shown, view_for_terminal
    from engine.experiment.search.runner import Runner

    view = view_for_terminal(plain=quiet or experiment.resource == "passive")
    runner = Runner(experiment, view, storage=storage, ask=_ask)
    try:
        best = runner.run()
    except (KeyboardInterrupt, SystemExit):
        print("stopped; engine run goes on from here", file=sys.stderr)
        raise
    finally:
        view.end()
    if not best:
        print(f"no trial has finished; the output of each is in {shown(runner.folder.root)}/jobs")
        return 1
    numbers = ", ".join(f"{number:g}" for number in best[0].values)
    if len(best) == 1:
        print(f"best: trial {best[0].number}, result {numbers}")
    else:
        print(f"{len(best)} trials that no other one beats; the first: {numbers}")
    for name, stored in best[0].params.items():
        value = next(p.value(stored) for p in runner.plan.parameters if p.name == name)
        text = f"{value:.4g}" if isinstance(value, float) else str(value)
        print(printable(f"  {name}: {text}"))
    print(f"as a one-time experiment: {shown(runner.folder.best)}")
    print(f"report: engine report {joined([shown(runner.folder.root)])}")
    return 0


def _ask(prompt: str) -> str:
    try:
        return input(prompt)
    except EOFError:
        raise EngineError("nobody types a result") from None


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
            print(f"\r\x1b[K{printable(text)}", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        """Take the line away."""
        if self._enabled:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
