"""What a user sees when something is wrong: one base class, structured fields, no tracebacks.

Every message has four parts in this order: what happened, where, what is allowed, the likely fix.
Everything a person may want to handle in code is an attribute, not only text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name most like ``name``, or None when nothing is close."""
    import difflib  # only when something is wrong: it takes longer than the rest of this module

    by_lower = {str(candidate).lower(): str(candidate) for candidate in known}
    matches = difflib.get_close_matches(str(name).lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[matches[0]] if matches else None


def printable(text: str) -> str:
    """Return ``text`` with control characters written out: a terminal shall not obey a file."""
    return "".join(
        c if c in "\n\t" or c.isprintable() else c.encode("unicode_escape").decode() for c in text
    )


class Problem(NamedTuple):
    """One thing that is wrong with a configuration.

    ``pointer`` is a JSON Pointer (RFC 6901) into the document, ``line`` counts from 1 and is None
    when the configuration did not come from a file.
    """

    message: str
    pointer: str = ""
    line: int | None = None
    allowed: str | None = None
    suggestion: str | None = None

    def __str__(self) -> str:
        place = self.pointer or "/"
        if self.line is not None:
            place += f"   (line {self.line})"
        lines = [place, f"  {self.message}"]
        if self.allowed:
            lines.append(f"  {self.allowed}")
        if self.suggestion:
            lines.append(f'  did you mean "{self.suggestion}"?')
        return "\n".join(lines)


class EngineError(Exception):
    """Base of every error that the engine raises for something a person can put right."""


class ConfigError(EngineError):
    """A configuration is wrong, by itself or for the model at hand.

    Attributes:
        problems: every problem found, in document order.
        source: the file that was read, or a short name such as ``"config_list"``.
    """

    def __init__(self, problems: Sequence[Problem], source: str = "configuration") -> None:
        self.problems = tuple(problems)
        self.source = source
        count = f"{len(self.problems)} problem" + ("s" if len(self.problems) != 1 else "")
        super().__init__("\n\n".join([f"{source}: {count}", *map(str, self.problems)]))

    def __reduce__(self) -> tuple[type[ConfigError], tuple[tuple[Problem, ...], str]]:
        return type(self), (self.problems, self.source)


class PluginError(EngineError):
    """A plugin is unknown, broken, incompatible, or misbehaved in a hook.

    Attributes:
        plugin: the algorithm's or extension's name.
        distribution: ``"name version"`` of the distribution that it came from, if known.
        hook: the hook that failed, if any.
        layer: the layer that it failed on, if any.
    """

    def __init__(
        self,
        message: str,
        *,
        plugin: str | None = None,
        distribution: str | None = None,
        hook: str | None = None,
        layer: str | None = None,
    ) -> None:
        self.plugin = plugin
        self.distribution = distribution
        self.hook = hook
        self.layer = layer
        super().__init__(message)


class CheckpointError(EngineError):
    """A file or state cannot be loaded; nothing was changed."""


class ExportError(EngineError):
    """A model cannot be exported; no file was written under its final name."""
