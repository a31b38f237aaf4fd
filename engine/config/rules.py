"""The rules of a configuration that JSON Schema has no keyword for, and the words for two it has.

- ``x-ascending: [[a, "<=", b], ...]``: of two numbers, the first is the smaller one.
- ``x-same-members: [list, mapping]``: when the second is a mapping, its keys are the list's items.
- ``x-same-in-all: [key, ...]``: all entries of a list agree on these.
- ``x-entry``: what every entry of a ``config_list`` obeys; put there by ``schema.compose``.

``required`` and ``additionalProperties: false`` report each key by itself, and a misspelt key once,
not as unknown here and missing there.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from engine.config.patterns import fault_of
from engine.config.plain import show
from engine.errors import nearest

#: The kinds of a Broken: a message meant for people as it stands; an unknown or a missing key.
SAID = "x-said"
UNKNOWN = "x-unknown"
MISSING = "x-missing"

_SELECTORS = ("op_types", "op_names")
_COMPARE = {"<": operator.lt, "<=": operator.le}


class Broken(NamedTuple):
    """A rule that an instance breaks, at ``path`` in it.

    ``text`` is the message, or the key that is unknown or missing. ``detail`` is what is allowed;
    of an unknown key, the known ones and the absent one that it looks like.
    """

    kind: str
    text: str
    path: tuple[str | int, ...] = ()
    detail: Any = None


Rule = Callable[[Any, Any, dict[str, Any]], Iterator[Broken]]


def _misspelt(instance: dict[str, Any], known: Any, closed: bool) -> dict[str, str]:
    """Return for each key that is not known the absent one that it looks like, or ""."""
    if not closed:
        return {}
    absent = [key for key in known if key not in instance]
    return {key: nearest(key, absent) or "" for key in instance if key not in known}


def required(keys: list[str], instance: Any, schema: dict[str, Any]) -> Iterator[Broken]:
    """Yield the keys that are missing, unless a misspelt one is there."""
    if isinstance(instance, dict):
        closed = schema.get("additionalProperties", True) is False
        meant = set(_misspelt(instance, schema.get("properties", {}), closed).values())
        for key in keys:
            if key not in instance and key not in meant:
                yield Broken(MISSING, key)


def no_others(instance: Any, schema: dict[str, Any]) -> Iterator[Broken]:
    """Yield the keys that are not among the properties."""
    if isinstance(instance, dict):
        known = list(schema.get("properties", {}))
        for key, near in _misspelt(instance, known, True).items():
            yield Broken(UNKNOWN, key, (key,), (known, near))


def entry(rule: dict[str, Any], instance: Any, schema: dict[str, Any]) -> Iterator[Broken]:
    """Yield what is wrong with the keys of one entry of a ``config_list``."""
    if not isinstance(instance, dict):
        return
    known = list(schema["properties"])
    misspelt = _misspelt(instance, known, rule["closed"])
    for key, near in misspelt.items():
        yield Broken(UNKNOWN, key, (key,), (known, near))
    meant = set(misspelt.values())
    if not any(key in instance or key in meant for key in _SELECTORS):
        yield Broken(
            SAID,
            'neither "op_types" nor "op_names" is given',
            (),
            "an entry says which layers it is for: op_types: [default], for one",
        )
    yield from _patterns(instance.get("op_names"))
    if instance.get("exclude") is True:
        for key in instance:
            if key in known and key not in (*_SELECTORS, "exclude"):
                message = f'"{key}" is set for layers that are excluded'
                allowed = "an entry with exclude: true takes no other settings"
                yield Broken(SAID, message, (key,), allowed)
        return
    for key in rule["required"]:
        if key not in instance and key not in meant:
            yield Broken(MISSING, key)


def _patterns(names: Any) -> Iterator[Broken]:
    for place, name in enumerate(names if isinstance(names, list) else ()):
        fault = fault_of(name) if isinstance(name, str) else None
        if fault:
            yield Broken(SAID, fault, ("op_names", place), 'allowed: a name, a glob, or "re:..."')


def _number(instance: dict[str, Any], schema: dict[str, Any], key: str) -> float | None:
    default = schema.get("properties", {}).get(key, {}).get("default")
    value = instance.get(key, default)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def ascending(pairs: list[list[str]], instance: Any, schema: dict[str, Any]) -> Iterator[Broken]:
    """Yield the pairs of numbers that are in the wrong order."""
    if not isinstance(instance, dict):
        return
    for low, sign, high in pairs:
        first, second = _number(instance, schema, low), _number(instance, schema, high)
        if first is None or second is None or _COMPARE[sign](first, second):
            continue
        message = f"{low} is {show(first)} and {high} is {show(second)}"
        place = (high,) if high in instance else (low,)
        yield Broken(SAID, message, place, f"needed: {low} {sign} {high}")


def same_members(names: list[str], instance: Any, schema: dict[str, Any]) -> Iterator[Broken]:
    """Yield the items of a list that a mapping lacks, and the keys that are not in the list."""
    if not isinstance(instance, dict):
        return
    settings = schema.get("properties", {})
    listed, mapping = (instance.get(name, settings.get(name, {}).get("default")) for name in names)
    if not isinstance(listed, list) or not isinstance(mapping, dict):
        return
    allowed = f"as a mapping, {names[1]} has one value for each of {names[0]}"
    for item in listed:
        if isinstance(item, str) and item not in mapping:
            yield Broken(SAID, f'{names[1]} has nothing for "{item}"', (names[1],), allowed)
    for key in mapping:
        if key not in listed:
            yield Broken(SAID, f'"{key}" is not one of {names[0]}', (names[1], key), allowed)


def same_in_all(keys: list[str], instance: Any, schema: dict[str, Any]) -> Iterator[Broken]:
    """Yield the entries of a list that differ from the first in one of ``keys``."""
    if not isinstance(instance, list):
        return
    for key in keys:
        given = [(i, e[key]) for i, e in enumerate(instance) if isinstance(e, dict) and key in e]
        for index, value in given[1:]:
            if value != given[0][1]:
                message = f"{show(value)} differs from {show(given[0][1])} in entry {given[0][0]}"
                yield Broken(SAID, message, (index, key), f"{key} is the same in all entries")


#: Our keywords, and ``required``, which is reported in another way.
RULES: dict[str, Rule] = {
    "required": required,
    "x-ascending": ascending,
    "x-same-members": same_members,
    "x-same-in-all": same_in_all,
    "x-entry": entry,
}
