"""The layers of a model by name or pattern, and what is said of a name that no layer has."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from engine.config.patterns import is_pattern, matching


class NoLayerError(Exception):
    """A name or pattern that no layer answers to.

    Attributes:
        message: what is wrong.
        allowed: what the model has.
        hint: the nearest name, or None.
    """

    def __init__(self, message: str, allowed: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message, self.allowed, self.hint = message, allowed, hint


class Names(NamedTuple):
    """The names of a model's modules.

    Attributes:
        first: by every name of a module, the first one.
        types: by first name, the classes of the module, its own first.
    """

    first: Mapping[str, str]
    types: Mapping[str, list[str]]

    def called(self, name: str, among: Collection[str] | None) -> set[str]:
        """Return the first names of the modules that ``name`` means.

        Args:
            name: a dotted name, or a pattern, which is one only if no module is called that way.
            among: names of classes that a pattern looks among; None: all modules.

        Raises:
            NoLayerError: there is none.
        """
        if name in self.first:
            return {self.first[name]}
        if not is_pattern(name):
            raise self._unknown(name, f'the model has no layer "{name}"')
        found = {self.first[match] for match in matching(name, self.first)}
        if not found:
            raise self._unknown(name, f'no layer of the model matches "{name}"')
        kept = {m for m in found if among is None or not set(among).isdisjoint(self.types[m])}
        if not kept:
            assert among is not None
            message = f'{len(found)} modules match "{name}", none is of a type looked for'
            types = count(self.types[match][0] for match in found)
            looked = ", ".join(sorted(among))
            raise NoLayerError(message, f"looked for: {looked}; they are: {types}")
        return kept

    def _unknown(self, name: str, message: str) -> NoLayerError:
        near = difflib.get_close_matches(name, self.first, n=4, cutoff=0.5)
        shown = near or [known for known in self.first if known][:6]
        more = ", ..." if len(self.first) > len(shown) else ""
        allowed = f"layers are: {', '.join(shown)}{more}"
        return NoLayerError(message, allowed, near[0] if near else None)


def count(names: Iterable[str]) -> str:
    """Return how often each name is there: ``3 Conv2d, 1 Linear``."""
    counts = Counter(names)
    return ", ".join(f"{number} {name}" for name, number in sorted(counts.items()))
