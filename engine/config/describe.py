"""What a schema asks for, in a few words: for messages and for ``engine show``."""

from __future__ import annotations

from typing import Any

from engine.config.plain import show

_NOUNS = {
    "integer": "a whole number",
    "number": "a number",
    "string": "text",
    "boolean": "true or false",
    "array": "a list",
    "object": "a mapping",
    "null": "nothing",
}


def types(schema: dict[str, Any]) -> list[str]:
    """Return the type names of a schema, which may have one, several or none."""
    given = schema.get("type", [])
    return [given] if isinstance(given, str) else [item for item in given if isinstance(item, str)]


def noun(schema: dict[str, Any]) -> str:
    """Return what kind of value a schema asks for: ``"a whole number or a mapping"``."""
    return " or ".join(_NOUNS.get(name, name) for name in types(schema)) or "another value"


def bounds(schema: dict[str, Any], name: str) -> str:
    """Return the range of a number as people write it: ``"0 <= sparsity < 1"``; may be empty."""
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None and low == high:
        return f"{name} = {show(low)}"
    below, above = "<=", "<="
    if "exclusiveMinimum" in schema:
        low, below = schema["exclusiveMinimum"], "<"
    if "exclusiveMaximum" in schema:
        high, above = schema["exclusiveMaximum"], "<"
    if low is not None and high is not None:
        return f"{show(low)} {below} {name} {above} {show(high)}"
    if low is not None:
        return f"{name} {below.replace('<', '>')} {show(low)}"
    return f"{name} {above} {show(high)}" if high is not None else ""


def choices(schema: dict[str, Any]) -> list[str]:
    """Return the values that a schema, or the items of its list, may be; empty when open."""
    values = schema.get("enum")
    if values is None and "const" in schema:
        values = [schema["const"]]
    if values is None:
        items = schema.get("items")
        return choices(items) if isinstance(items, dict) else []
    return [value if isinstance(value, str) else show(value) for value in values]


def needs(schema: dict[str, Any], name: str, *, brief: bool = False) -> str:
    """Return what a value must be: ``"a number, 0 <= sparsity < 1"``; ``brief``: range alone."""
    if "title" in schema:
        return str(schema["title"])
    listed = choices(schema)
    range_ = bounds(schema, name)
    kinds = types(schema)
    if listed:
        return f"{'a list of' if 'array' in kinds else 'one of'} {', '.join(listed)}"
    if not kinds:
        return range_ or "another value"
    parts = [_NOUNS.get(kinds[0], kinds[0])]
    if range_:
        parts = [range_] if brief else [parts[0], range_]
    if "object" in kinds[1:]:
        parts.append("or a mapping of such numbers" if range_ else "or a mapping")
    elif kinds[1:]:
        parts.append(f"or {' or '.join(_NOUNS.get(kind, kind) for kind in kinds[1:])}")
    return ", ".join(parts)
