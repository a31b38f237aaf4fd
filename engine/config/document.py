"""A configuration as it was read, and where in the user's file each of its values stands."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from engine.errors import Problem


class Document:
    """Plain data and where they came from.

    Attributes:
        data: the configuration in today's form: mappings, lists, text, numbers, booleans, None.
        source: the file's path as it was given, or a word for what was passed in Python.
    """

    def __init__(
        self,
        data: Any,
        source: str = "configuration",
        lines: Callable[[], Mapping[str, int]] | None = None,
        origins: Mapping[str, str] | None = None,
    ) -> None:
        self.data = data
        self.source = source
        self._read_lines = lines
        self._lines: Mapping[str, int] | None = None
        self._origins = origins or {}

    def pointer(self, pointer: str) -> str:
        """Return the JSON Pointer into the user's own file, which may be of the old format."""
        rest = ""
        at = pointer
        while self._origins:
            if at in self._origins:
                return self._origins[at] + rest
            if not at:
                break
            at, _, last = at.rpartition("/")
            rest = f"/{last}{rest}"
        return pointer

    def line(self, pointer: str) -> int | None:
        """Return the line of a value, or of what it would stand in; None without a file."""
        if self._read_lines is None:
            return None
        if self._lines is None:
            self._lines = self._read_lines()
        at = self.pointer(pointer)
        while at and at not in self._lines:
            at = at.rpartition("/")[0]
        return self._lines.get(at)

    def problem(
        self,
        message: str,
        pointer: str = "",
        allowed: str | None = None,
        suggestion: str | None = None,
    ) -> Problem:
        """Return a Problem at the user's place for ``pointer``."""
        return Problem(message, self.pointer(pointer), self.line(pointer), allowed, suggestion)
