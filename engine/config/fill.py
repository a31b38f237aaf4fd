"""Checked data completed: defaults filled in, whole numbers made integers."""

from __future__ import annotations

from typing import Any

from engine.config.describe import types
from engine.config.schema import Schema, Shape


def value(given: Any, schema: Schema) -> Any:
    """Return a copy of a valid value, numbers as its schema types them: 10.0 as 10, 0 as 0.0."""
    kinds = types(schema)
    if isinstance(given, float) and "integer" in kinds and "number" not in kinds:
        return int(given)
    if isinstance(given, int) and not isinstance(given, bool) and kinds == ["number"]:
        return float(given)
    if isinstance(given, dict):
        inner, rest = schema.get("properties", {}), schema.get("additionalProperties")
        rest = rest if isinstance(rest, dict) else {}
        return {key: value(item, inner.get(key, rest)) for key, item in given.items()}
    if isinstance(given, list):
        items = schema.get("items")
        return [value(item, items if isinstance(items, dict) else {}) for item in given]
    return given


def mapping(given: dict[str, Any], schemas: dict[str, Schema]) -> dict[str, Any]:
    """Return ``given`` with the defaults of what is absent, in the order of ``schemas``."""
    result = {}
    for name, schema in schemas.items():
        if name in given:
            result[name] = value(given[name], schema)
        elif "default" in schema:
            result[name] = value(schema["default"], schema)
    rest = {key: value(item, {}) for key, item in given.items() if key not in result}
    return {**result, **rest}


def entries(given: list[dict[str, Any]] | None, shape: Shape) -> list[dict[str, Any]]:
    """Return the entries with their defaults, and a schedule's values under the pruner's names.

    An empty list means the default of ``config_list``, where the schema has one. An entry that
    excludes layers gets no settings.
    """
    if not given:
        given = shape.config_list.get("default") or []
    settings = shape.entry["properties"]
    result = []
    for entry in given:
        if entry.get("exclude") is True:
            result.append(mapping(entry, {}))
            continue
        full = mapping(entry, settings)
        for own, provided in shape.provides.items():
            if own in full:
                full[provided] = full[own]
        result.append(full)
    return result
