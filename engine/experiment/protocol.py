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
        EngineError: not a number, or NaN.
    """
    values: Any = value if isinstance(value, list | tuple) else [value]
    try:
        numbers = [float(item) for item in values]
    except (TypeError, ValueError) as error:
        raise EngineError(f"print_result takes numbers, got {value!r}") from error
    if not numbers or any(math.isnan(number) for number in numbers):
        raise EngineError(f"print_result takes at least one number, none of them NaN: {value!r}")
    sys.stdout.flush()
    sys.stderr.write(f"\n{MARK}{','.join(map(repr, numbers))}\n")
    sys.stderr.flush()


def result_in(lines: Iterable[str]) -> list[float] | None:
    """Return the numbers of the last result among ``lines``, None when there is none."""
    result = None
    for line in lines:
        _, mark, rest = line.partition(MARK)
        if mark:
            try:
                result = [float(item) for item in rest.strip().split(",")]
            except ValueError:
                continue
    return result
