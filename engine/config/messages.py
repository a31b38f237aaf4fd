"""Validation errors in the words of the person who wrote the configuration.

Each becomes a problem with what is wrong, what is allowed and the nearest name. The validator's own
message is shown only for keywords that none of our schemas use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from engine.config.describe import choices, needs, noun, types
from engine.config.other_words import meant_by
from engine.config.plain import escape, show
from engine.config.rules import MISSING, SAID, UNKNOWN
from engine.errors import nearest

if TYPE_CHECKING:
    from jsonschema.exceptions import ValidationError

    from engine.config.schema import Shape

_TRUE = {"yes", "on", "y", "true", "1"}
_FALSE = {"no", "off", "n", "false", "0"}
_RANGE = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}


class Found(NamedTuple):
    """A problem at a pointer into the data as they were checked."""

    pointer: str
    message: str
    allowed: str | None = None
    suggestion: str | None = None


class Words:
    """Puts errors into words for one configuration, whose algorithm has the given shape."""

    def __init__(
        self, shape: Shape | None, general: str = "the engine", *, python: bool = False
    ) -> None:
        """``general`` owns the rules that are not of ``shape``; ``python``: no file was read."""
        self._shape = shape
        self._general = general
        self._python = python

    def found(self, errors: Iterable[ValidationError], pointer: str = "") -> list[Found]:
        """Return one Found for each mistake: a value that breaks two rules is reported once."""
        result: dict[tuple[str, str], Found] = {}
        places: set[str] = set()
        for error in errors:
            for each in self._put(error):
                found = each._replace(pointer=pointer + each.pointer)
                if error.validator == MISSING or found.pointer not in places:
                    result.setdefault((found.pointer, found.message), found)
                if error.validator != MISSING:
                    places.add(found.pointer)
        return list(result.values())

    def _subject(self, path: list[str | int]) -> str:
        """Return whose rule it is that a value at ``path`` breaks."""
        if self._shape is None:
            return self._general
        names = [step for step in path if isinstance(step, str) and step != "compression"]
        if names and names[0] == "config_list":
            return self._shape.owners.get(names[1] if len(names) > 1 else "", self._shape.title)
        return self._shape.owners.get(names[0] if names else "", self._general)

    def _put(self, error: ValidationError) -> Iterator[Found]:
        path = list(error.absolute_path)
        pointer = "".join(f"/{escape(str(step))}" for step in path)
        name = next((step for step in reversed(path) if isinstance(step, str)), "value")
        schema: Any = error.schema if isinstance(error.schema, dict) else {}
        rule: Any = error.validator_value
        value = error.instance
        subject = self._subject(path)
        kind = str(error.validator)
        if kind == SAID:
            yield Found(pointer, error.message, rule)
        elif kind == UNKNOWN:
            yield self._unknown(pointer, path, error.message, *rule)
        elif kind == MISSING:
            wanted = schema.get("properties", {}).get(error.message, {})
            owner = self._subject([*path, error.message])
            allowed = f"{owner} needs: {needs(wanted, error.message)}"
            yield Found(pointer, f'"{error.message}" is missing', allowed)
        elif kind == "type":
            yield _wrong_type(pointer, name, schema, value, subject)
        elif kind in _RANGE:
            allowed = f"{subject} needs: {needs(schema, name, brief=True)}"
            yield Found(pointer, f"{show(value)} is out of range", allowed)
        elif kind in ("enum", "const"):
            yield _not_among(pointer, schema, value, subject)
        elif kind in ("anyOf", "oneOf") and error.context:
            yield from self._closest(error, pointer, subject)
        else:
            simple = _SIMPLE.get(kind)
            message = simple(value, rule) if simple else _shortened(error.message)
            if kind == "pattern" and "title" in schema:  # it says in words what is needed
                message = f"{show(value)} is not of that form"
            allowed = needs(schema, name)
            known = allowed != "another value"
            yield Found(pointer, message, f"{subject} needs: {allowed}" if known else None)

    def _unknown(
        self, pointer: str, path: list[str | int], key: str, known: list[str], near: str
    ) -> Found:
        in_entry = "config_list" in path
        who, shape = self._general, self._shape
        if shape is not None:
            who = shape.title
            if not in_entry and key in shape.entry["properties"]:
                message = f'"{key}" stands outside of config_list'
                return Found(pointer, message, "it is a setting of the entries of config_list")
            if in_entry and key in shape.arguments:
                message = f'"{key}" stands in an entry of config_list'
                allowed = "it is an argument of the algorithm and stands beside config_list"
                return Found(pointer, message, allowed)
            if key in shape.runtime:
                message = f'"{key}" cannot be given in a file'
                return Found(pointer, message, f"it is given in Python: {shape.runtime[key]}")
        word = "setting" if in_entry else "argument" if self._python else "key"
        known = [name for name in known if not (self._python and name == "config_list")]
        allowed = f"{who} allows: {', '.join(known)}" if known else f"{who} allows none"
        if meant := meant_by(key):
            return Found(pointer, f'unknown {word} "{key}"', f"here that is: {meant}\n  {allowed}")
        return Found(pointer, f'unknown {word} "{_cut(key)}"', allowed, near or None)

    def _closest(self, error: ValidationError, pointer: str, subject: str) -> Iterator[Found]:
        """Report the branch that the value comes nearest to, or the kinds that would do."""
        rule: Any = error.validator_value
        branches: dict[Any, list[ValidationError]] = {}
        context: Any = error.context
        for each in context:
            branches.setdefault(each.schema_path[0], []).append(each)
        fitting = [
            each
            for each in branches.values()
            if not any(e.validator in ("type", "const", "enum") and not e.path for e in each)
        ]
        if fitting:
            for each in min(fitting, key=len):
                yield from self._put(each)
            return
        schemas = [branch for branch in rule if isinstance(branch, dict)]
        listed = [branch for branch in schemas if "enum" in branch]
        if listed and isinstance(error.instance, str):
            yield _not_among(pointer, listed[0], error.instance, subject)
            return
        wanted = "; or ".join(needs(branch, "value") for branch in schemas)
        yield Found(pointer, f"{show(error.instance)} fits none", f"{subject} needs: {wanted}")


def _wrong_type(pointer: str, name: str, schema: Any, value: Any, subject: str) -> Found:
    wanted = noun(schema)
    allowed = f"{subject} needs: {needs(schema, name)}"
    suggestion = None
    if value is None:
        return Found(pointer, "nothing is given", allowed)
    message = f"{show(value)} is {'text, ' if isinstance(value, str) else ''}not {wanted}"
    kinds = types(schema)
    if isinstance(value, str):
        if "array" in kinds and value:
            suggestion = f"[{_cut(value)}]"
        elif "boolean" in kinds and value.lower() in _TRUE | _FALSE:
            suggestion = "true" if value.lower() in _TRUE else "false"
        elif {"number", "integer"} & set(kinds) and _is_number(value):
            allowed += ", without quotes"
    elif "array" in kinds and isinstance(value, dict):
        allowed += '; each of its items begins with "-"'
    return Found(pointer, message, allowed, suggestion)


def _not_among(pointer: str, schema: Any, value: Any, subject: str) -> Found:
    refused = schema.get("x-refused", {})
    listed = choices(schema)
    allowed = f"{subject} allows: {', '.join(listed)}"
    if isinstance(value, str) and value.lower() in refused:
        return Found(pointer, refused[value.lower()], allowed)
    suggestion = nearest(value, listed) if isinstance(value, str) else None
    return Found(pointer, f"{show(value)} is not one of the choices", allowed, suggestion)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _cut(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


def _shortened(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 200 else text[:197] + "..."


def _empty(value: Any, rule: Any) -> str:
    if rule > 1:
        return f"{len(value)} are given, at least {rule} are needed"
    return "the text is empty" if isinstance(value, str) else f"{_kind(value)} is empty"


def _kind(value: Any) -> str:
    return "the mapping" if isinstance(value, dict) else "the list"


def _twice(value: Any, rule: Any) -> str:
    again = next((item for index, item in enumerate(value) if item in value[:index]), None)
    return f"{show(again)} is given twice"


_SIMPLE: dict[str, Callable[[Any, Any], str]] = {
    "minItems": _empty,
    "minLength": _empty,
    "minProperties": _empty,
    "maxItems": lambda value, rule: f"{len(value)} are given, at most {rule} are allowed",
    "maxProperties": lambda value, rule: f"{len(value)} are given, at most {rule} are allowed",
    "maxLength": lambda value, rule: f"the text is longer than {rule} characters",
    "uniqueItems": _twice,
    "multipleOf": lambda value, rule: f"{show(value)} is not a multiple of {show(rule)}",
    "pattern": lambda value, rule: f"{show(value)} is not of the form {rule}",
}
