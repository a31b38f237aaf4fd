"""Plain data only: what a configuration may be made of, wherever it came from.

Mappings with text as keys, lists, text, finite numbers, true/false and nothing. The result is a
copy: what the engine fills in never shows up in the caller's own dictionaries.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from typing import Any

from engine.errors import Problem

#: Deeper or larger than any real configuration; a cyclic object or a YAML bomb exceeds them soon.
MAX_DEPTH = 50
MAX_VALUES = 100_000


class TooLargeError(Exception):
    """The data are nested too deeply or hold too many values."""


class UnreadableError(Exception):
    """A text cannot be read; carries the problems found so far, a fatal one last."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems
        super().__init__(problems)


def escape(key: str) -> str:
    """Return ``key`` as one step of a JSON Pointer (RFC 6901)."""
    return key.replace("~", "~0").replace("/", "~1")


def steps(pointer: str) -> list[str]:
    """Return the unescaped steps of a JSON Pointer."""
    return [step.replace("~1", "/").replace("~0", "~") for step in pointer.split("/")[1:]]


def show(value: object) -> str:
    """Return a value as a message quotes it: short, and as a configuration file spells it."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f'"{value if len(value) <= 40 else value[:37] + "..."}"'
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, int | float):
        text = f"{value:g}" if isinstance(value, float) else _digits(value)
        return text if len(text) <= 40 else text[:37] + "..."
    return f"an object of type {type(value).__name__}"


def _digits(value: int) -> str:
    return str(value) if abs(value) < 10**40 else "a number of more than 40 digits"


class _Copier:
    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.count = 0

    def copy(self, value: Any, pointer: str, depth: int) -> Any:
        self.count += 1
        if depth > MAX_DEPTH or self.count > MAX_VALUES:
            raise TooLargeError
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            return str(value)
        if isinstance(value, Mapping):
            return self._mapping(value, pointer, depth)
        if isinstance(value, list | tuple):
            return [
                self.copy(item, f"{pointer}/{index}", depth + 1) for index, item in enumerate(value)
            ]
        return self._number(value, pointer)

    def _mapping(self, value: Mapping[Any, Any], pointer: str, depth: int) -> dict[str, Any]:
        result = {}
        for key, item in value.items():
            if isinstance(key, str):
                result[str(key)] = self.copy(item, f"{pointer}/{escape(key)}", depth + 1)
            else:
                message = f"the key {show(key)} is not text"
                self.problems.append(Problem(message, pointer, None, "keys are names, in quotes"))
        return result

    def _number(self, value: Any, pointer: str) -> int | float | None:
        kind = type(value)
        try:
            if isinstance(value, int) or hasattr(kind, "__index__"):
                return operator.index(value)
            if isinstance(value, float) or hasattr(kind, "__float__"):
                number = float(value)
                if math.isfinite(number):
                    return number
                self.problems.append(Problem(f"{number:g} is not a finite number", pointer))
                return None
        except Exception:  # a tensor with many elements, say: it is no number after all
            pass
        if isinstance(value, type):
            message, suggestion = f"the class {value.__name__} stands here", value.__name__
        else:
            message, suggestion = f"{show(value)} stands here", None
        needs = "a configuration holds text, numbers, true, false, lists and mappings"
        self.problems.append(Problem(message, pointer, None, needs, suggestion))
        return None


def plain(value: Any, pointer: str = "") -> tuple[Any, list[Problem]]:
    """Return a copy of ``value`` made of plain data, and what in it is not plain.

    Tuples become lists; NumPy and torch scalars become numbers.

    Raises:
        TooLargeError: deeper than MAX_DEPTH (a cycle, for one) or more than MAX_VALUES values.
    """
    copier = _Copier()
    return copier.copy(value, pointer, 0), copier.problems
