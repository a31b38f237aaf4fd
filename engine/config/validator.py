"""JSON Schema 2020-12 by jsonschema, with the keywords that configurations need beside it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from jsonschema import validators
from jsonschema.exceptions import SchemaError, ValidationError
from referencing import Registry

from engine.config.rules import RULES, Broken, Rule, no_others


def errors(schema: dict[str, Any], instance: Any) -> list[ValidationError]:
    """Return every error of ``instance`` under a schema whose references are replaced."""
    # An empty registry keeps jsonschema from fetching anything over the network.
    validator = _validator_class()(schema, registry=Registry())
    return list(validator.iter_errors(instance))


def fault(schema: dict[str, Any]) -> str | None:
    """Return what is wrong with a schema by the rules of JSON Schema itself, or None."""
    try:
        validators.Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        place = "".join(f"/{step}" for step in error.absolute_path)
        return f"{place}: {' '.join(error.message.split())[:200]}"
    return None


@lru_cache(maxsize=1)
def _validator_class() -> Any:
    keywords = {name: _keyword(rule) for name, rule in RULES.items()}
    keywords["additionalProperties"] = _additional
    extend: Any = validators.extend
    return extend(validators.Draft202012Validator, keywords)


def _error(broken: Broken) -> ValidationError:
    return ValidationError(
        broken.text, validator=broken.kind, path=broken.path, validator_value=broken.detail
    )


def _keyword(rule: Rule) -> Any:
    def check(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
        yield from map(_error, rule(value, instance, schema))

    return check


def _additional(
    validator: Any, value: Any, instance: Any, schema: Any
) -> Iterator[ValidationError]:
    if value is False and "patternProperties" not in schema:
        yield from map(_error, no_others(instance, schema))
    else:
        original = validators.Draft202012Validator.VALIDATORS["additionalProperties"]
        yield from original(validator, value, instance, schema)
