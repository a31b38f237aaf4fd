"""How a script reports: a line with a mark, on standard error.

The last such line is the script's result, earlier ones are intermediate results. Its first number
is the score; further ones are other measures. The mark is that of Auptimizer, whose scripts run
unchanged.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from engine.errors import EngineError

MARK = "#Auptimizer:"


def print_result(value: float | Sequence[float]) -> None:
    """Report a result, intermediate or final.

    Args:
        value: the score, or the score followed by other measures. Anything that ``float`` takes,
            such as a tensor of one element.

    Raises:
        EngineError: not a number, or not a finite one: a score that is NaN or infinite cannot be
            compared, and JSON has none.
    """
    values: Any = value if isinstance(value, list | tuple) else [value]
    try:
        numbers = [float(item) for item in values]
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise EngineError(f"print_result takes numbers, got {value!r}") from error
    if not numbers or not all(map(math.isfinite, numbers)):
        raise EngineError(f"print_result takes at least one number, all of them finite: {value!r}")
    sys.stdout.flush()
    sys.stderr.write(f"\n{MARK}{','.join(map(repr, numbers))}\n")
    sys.stderr.flush()


def result_of(line: str) -> list[float] | None:
    """Return the numbers that a line reports, None when it is no result.

    A script that is not written in Python may report numbers that are not finite.
    """
    _, mark, rest = line.partition(MARK)
    if not mark:
        return None
    try:
        return [float(item) for item in rest.strip().split(",")]
    except ValueError:
        return None


def result_in(lines: Iterable[str]) -> list[float] | None:
    """Return the numbers of the last result among ``lines``, None when there is none."""
    found = [numbers for line in lines if (numbers := result_of(line)) is not None]
    return found[-1] if found else None
