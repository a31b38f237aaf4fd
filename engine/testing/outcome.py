"""What a check is, how it is run, and what becomes of it.

A check is a function with the claim as its docstring's first line. It takes a
:class:`~engine.testing.subject.Subject`, returns a short finding or None, and raises
:class:`CheckFailedError` or :class:`CheckSkippedError`, each with the reason. Whatever else it
raises is a failure, too: a plugin that raises is what most checks are there to find.
"""

from __future__ import annotations

import contextlib
import io
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch

from engine.errors import EngineError

if TYPE_CHECKING:
    from engine.testing.subject import Subject

OK = "ok"
FAILED = "failed"
SKIPPED = "skipped"
EXPECTED = "expected failure"
UNEXPECTED = "unexpected pass"
#: Outcomes that are findings: ``engine check`` ends with exit code 1, a test fails.
BAD = frozenset((FAILED, UNEXPECTED))

PRUNER, QUANTIZER = "pruner", "quantizer"
SCHEDULE, SEARCH = "schedule", "search"
BLOCKS = "blocks"
WATCHER, CONSTRAINT, TRAINING = "watcher", "constraint", "training"
EXPORTER = "exporter"
ALGORITHM_ROLES = (PRUNER, QUANTIZER, SCHEDULE, SEARCH, BLOCKS)
EXTENSION_ROLES = (WATCHER, CONSTRAINT, TRAINING)
ROLES = (*ALGORITHM_ROLES, *EXTENSION_ROLES, EXPORTER)

CheckFunction = Callable[["Subject"], "str | None"]


class CheckFailedError(Exception):
    """The claim does not hold; the text says what was found."""


class CheckSkippedError(Exception):
    """The claim says nothing of this plugin, or cannot be tested here; the text says why."""


class Check(NamedTuple):
    """One claim about a plugin.

    Attributes:
        name: stable; ``expected_failures`` and tests refer to it.
        claim: one line.
        roles: which plugins it is about, as ``engine list-algorithms`` labels them.
        runs_code: whether the plugin is used, so that the check is skipped where it has no class.
        function: the check itself.
    """

    name: str
    claim: str
    roles: frozenset[str]
    runs_code: bool
    function: CheckFunction


class Result(NamedTuple):
    """What became of a check; of one that is ``ok``, ``reason`` is what it found, if anything."""

    name: str
    claim: str
    outcome: str
    reason: str
    seconds: float


#: Every check, in the order in which they are reported.
CHECKS: list[Check] = []


def check(*roles: str, runs_code: bool = True) -> Callable[[CheckFunction], CheckFunction]:
    """Register a function as a check for plugins of these roles; without any, for all."""

    def register(function: CheckFunction) -> CheckFunction:
        claim = (function.__doc__ or "").strip().splitlines()[0].rstrip(".")
        wanted = frozenset(roles or ROLES)
        CHECKS.append(Check(function.__name__, claim, wanted, runs_code, function))
        return function

    return register


def require(condition: object, message: str) -> None:
    """Raise :class:`CheckFailedError` with ``message`` unless ``condition`` is true."""
    if not condition:
        raise CheckFailedError(message)


def run(each: Check, subject: Subject) -> Result:
    """Run one check in a quiet surrounding and say what became of it.

    What is printed is swallowed, warnings are not shown, torch runs on one thread (the models are
    tiny), and its random numbers begin anew and are put back.
    """
    from engine.testing.subject import detach_all

    started = time.perf_counter()
    outcome, reason = OK, ""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with _quiet(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            reason = each.function(subject) or ""
    except CheckSkippedError as skipped:
        outcome, reason = SKIPPED, str(skipped)
    except Exception as error:
        outcome, reason = FAILED, _explain(error)
    finally:
        detach_all()
        torch.set_num_threads(threads)
    expected = subject.expected_failures.get(each.name)
    if expected is not None and outcome == FAILED:
        outcome, reason = EXPECTED, expected
    elif expected is not None and outcome == OK:
        outcome = UNEXPECTED
        reason = f"it passes now: take it out of expected_failures ({expected})"
    return Result(each.name, each.claim, outcome, reason, time.perf_counter() - started)


def _explain(error: Exception) -> str:
    if isinstance(error, (CheckFailedError, EngineError)):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{place}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    sink = io.StringIO()
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(sink),
        contextlib.redirect_stderr(sink),
    ):
        warnings.simplefilter("ignore")
        yield
