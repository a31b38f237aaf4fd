"""Whether a configuration is certainly valid, told without jsonschema.

Importing jsonschema takes most of the time of ``engine validate``, and a valid configuration, the
usual one, has no use for it. What is not accepted here is left to jsonschema, which knows all
keywords and says what is wrong; a test compares the two.
"""

from __future__ import annotations

import re
from typing import Any

from engine.config.rules import RULES, no_others

_NOTES = {
    *("$schema", "$id", "$defs", "title", "description", "default", "examples", "deprecated"),
    *("x-engine", "x-unit", "x-provides", "x-refused"),
}
_LEAST = {"minLength", "minItems", "minProperties"}
_MOST = {"maxLength", "maxItems", "maxProperties"}
_SIZED: dict[str, Any] = {"Length": str, "Items": list, "Properties": dict}


def accepts(schema: Any, value: Any) -> bool:
    """Return True if ``value`` is valid; False if it is not, or if that is not certain."""
    if not isinstance(schema, dict):
        return schema is True
    return all(_holds(keyword, rule, schema, value) for keyword, rule in schema.items())


def _holds(keyword: str, rule: Any, schema: dict[str, Any], value: Any) -> bool:
    if keyword in _NOTES:
        return True
    if keyword == "type":
        return any(_is(name, value) for name in ([rule] if isinstance(rule, str) else rule))
    if keyword in RULES:
        return not any(True for _ in RULES[keyword](rule, value, schema))
    if keyword == "pattern":
        return not isinstance(value, str) or re.search(rule, value) is not None
    if keyword == "enum":
        return isinstance(value, str) and value in rule
    if keyword == "properties":
        return not isinstance(value, dict) or all(
            accepts(rule[key], item) for key, item in value.items() if key in rule
        )
    if keyword == "additionalProperties":
        return _others(rule, schema, value)
    if keyword == "items":
        return not isinstance(value, list) or all(accepts(rule, item) for item in value)
    if keyword == "uniqueItems":
        return not isinstance(value, list) or (
            all(isinstance(item, str) for item in value) and len(set(value)) == len(value)
        )
    if keyword == "allOf":
        return all(accepts(each, value) for each in rule)
    if keyword == "anyOf":
        return any(accepts(each, value) for each in rule)
    if keyword in _LEAST:
        return bool(_size(keyword, value, rule) >= rule)
    if keyword in _MOST:
        return bool(_size(keyword, value, rule) <= rule)
    return _in_range(keyword, rule, value)


def _size(keyword: str, value: Any, otherwise: int) -> int:
    """Return the size of a value that the keyword is about; any other fulfils it."""
    return len(value) if isinstance(value, _SIZED[keyword[3:]]) else otherwise


def _is(name: str, value: Any) -> bool:
    if value is None:
        return name == "null"
    if isinstance(value, bool):
        return name == "boolean"
    if isinstance(value, int | float):
        return name == "number" or (name == "integer" and value == int(value))
    return name in ("string", "array", "object") and isinstance(
        value, {"string": str, "array": list, "object": dict}[name]
    )


def _others(rule: Any, schema: dict[str, Any], value: Any) -> bool:
    if "patternProperties" in schema:
        return False
    if rule is False:
        return not any(True for _ in no_others(value, schema))
    known = schema.get("properties", {})
    return not isinstance(value, dict) or all(
        accepts(rule, item) for key, item in value.items() if key not in known
    )


def _in_range(keyword: str, rule: Any, value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return keyword in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
    if keyword == "minimum":
        return bool(value >= rule)
    if keyword == "maximum":
        return bool(value <= rule)
    if keyword == "exclusiveMinimum":
        return bool(value > rule)
    return keyword == "exclusiveMaximum" and bool(value < rule)
