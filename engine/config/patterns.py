"""Layers by pattern: a glob over dotted names, or ``re:`` and a regular expression.

``*`` stands for any characters, dots included, ``?`` for one, ``[0-3]`` for one of some. Both kinds
match whole names.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable

#: What a regular expression begins with.
REGULAR = "re:"


def is_pattern(name: str) -> bool:
    """Return whether ``name`` is a pattern; a layer that is called that way comes first."""
    return name.startswith(REGULAR) or any(sign in name for sign in "*?[")


def fault_of(pattern: str) -> str | None:
    """Return why a pattern matches nothing whatever the model, or None."""
    try:
        _compiled(pattern)
    except re.error as error:
        return f'"{pattern}" is no regular expression: {error}'
    return None


def matching(pattern: str, names: Iterable[str]) -> list[str]:
    """Return the names that a pattern matches, in their order.

    Raises:
        re.error: the regular expression is none.
    """
    whole = _compiled(pattern)
    return [name for name in names if whole.fullmatch(name)]


def _compiled(pattern: str) -> re.Pattern[str]:
    if pattern.startswith(REGULAR):
        return re.compile(pattern.removeprefix(REGULAR))
    return re.compile(fnmatch.translate(pattern))
