"""A schema that builds upon another plugin's: what it says is added to what that one says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Schema = dict[str, Any]

#: What a plugin says of itself alone.
_OWN = frozenset(("title", "description"))
_OWN_FACTS = frozenset(("summary", "api", "aliases", "paper", "extends"))


def extended(schema: Schema, lineage: Sequence[Schema]) -> Schema:
    """Return ``schema`` on top of those that it builds upon.

    Objects are merged key by key; what is no object takes the place of what was there. Title,
    description, summary, API version, aliases and paper are each plugin's own.

    Args:
        schema: as its file has it.
        lineage: the schemas beneath, the nearest first, as their files have them.
    """
    whole: Schema = {}
    for beneath in reversed(lineage):
        whole = _merged(whole, {k: v for k, v in beneath.items() if k not in _OWN})
    facts = {k: v for k, v in whole.get("x-engine", {}).items() if k not in _OWN_FACTS}
    return _merged({**whole, "x-engine": facts}, schema)


def _merged(beneath: Schema, above: Schema) -> Schema:
    result = dict(beneath)
    for key, value in above.items():
        under = result.get(key)
        both = isinstance(under, dict) and isinstance(value, dict)
        result[key] = _merged(under, value) if both else value  # type: ignore[arg-type]
    return result
