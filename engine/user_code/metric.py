"""What a user's function returned, as a number."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from engine.errors import EngineError


def number(value: Any, name: str, where: str = "") -> float:
    """Return ``value`` as a float: a number, or a tensor or array that holds one.

    Args:
        value: what the function returned.
        name: the function's name, for the message.
        where: what it was called for.

    Raises:
        EngineError: it is no number, or NaN.
    """
    try:
        plain = value.detach() if isinstance(value, Tensor) else value
        result = math.nan if isinstance(plain, str) else float(plain)
    except (TypeError, ValueError, RuntimeError):
        result = math.nan
    if math.isnan(result):
        place = f", for {where} it returned" if where else ", it returned"
        raise EngineError(f"{name} must return a number that is not NaN{place} {value!r}")
    return result
