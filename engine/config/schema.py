"""What a configuration may hold for one plugin, or for a schedule with the pruner inside it.

The plugins' schemas are JSON Schema 2020-12. Their references, to their own ``$defs`` and to the
engine's ``engine:config``, are replaced by what they refer to, so that two schemas can be merged
and so that defaults and descriptions can be read without a validator.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, NamedTuple

from engine.config.plain import steps

Schema = dict[str, Any]

_SHARED = "engine:config"
SELECTION = ("op_types", "op_names", "exclude")
#: Keywords of an entry that are merged one by one; any other is a constraint on the whole entry.
_MERGED = {"type", "properties", "required", "additionalProperties", "title", "description"}
#: What a schema says of itself, not of a configuration.
_ABOUT = {"$schema", "$id", "$defs", "$comment", "definitions", "examples", "default", "x-engine"}


class BadSchemaError(Exception):
    """A plugin's schema cannot be used; the text says why."""


class Shape(NamedTuple):
    """What a compression section may hold, and what an entry of its ``config_list`` may hold.

    Attributes:
        title: how messages call the algorithm, ``"agp around level"`` for example.
        arguments: the schema of each argument beside ``config_list``.
        required: the arguments that must be given, ``"config_list"`` among them.
        config_list: the schema of ``config_list`` itself, without that of its entries.
        entry: the schema of one entry, ready for the validator.
        provides: for a setting of a schedule, the setting of the pruner that it stands for.
        owners: the algorithm that each argument and each setting of an entry belongs to.
        own_arguments: names of arguments that the algorithm itself takes.
        base_arguments, base_settings: names that the pruner inside a schedule takes.
        runtime: arguments that only Python can give, with their descriptions.
        closed: whether any other argument is a mistake.
        rules: further keywords that hold of all arguments together, of each schema.
    """

    title: str
    arguments: dict[str, Schema]
    required: tuple[str, ...]
    config_list: Schema
    entry: Schema
    provides: dict[str, str]
    owners: dict[str, str]
    own_arguments: frozenset[str]
    base_arguments: frozenset[str]
    base_settings: frozenset[str]
    runtime: dict[str, str]
    closed: bool
    rules: tuple[Schema, ...]


@lru_cache(maxsize=1)
def shared() -> Schema:
    """Return the definitions that all schemas share."""
    path = os.path.join(os.path.dirname(__file__), "shared.json")
    with open(path, encoding="utf-8") as file:
        schema: Schema = json.load(file)
    return schema


@lru_cache(maxsize=16)
def shared_definition(name: str) -> Schema:
    """Return one of the shared definitions, references replaced."""
    schema: Schema = expand(shared()["$defs"][name], shared())
    return schema


def expand(node: Any, root: Schema, trail: tuple[str, ...] = ()) -> Any:
    """Return a copy of a schema in which every ``$ref`` is replaced by what it refers to.

    Keywords beside a ``$ref`` hold as well as those that it refers to; where both say something
    different, the ones beside it are what messages and defaults are made of.

    Raises:
        BadSchemaError: a reference leads nowhere, to another file, or back to itself.
    """
    if isinstance(node, list):
        return [expand(item, root, trail) for item in node]
    if not isinstance(node, dict):
        return node
    reference = node.get("$ref")
    if not isinstance(reference, str):
        return {key: expand(value, root, trail) for key, value in node.items()}
    target, target_root = _look_up(reference, root)
    step = f"{id(target_root)} {reference}"
    if step in trail:
        raise BadSchemaError(f'the reference "{reference}" refers to itself')
    referred = expand(target, target_root, (*trail, step))
    beside = {key: expand(value, root, trail) for key, value in node.items() if key != "$ref"}
    if not isinstance(referred, dict):
        return beside if referred is True else referred
    differing = {
        key: value
        for key, value in referred.items()
        if key in beside and beside[key] != value and key not in ("description", "default", "title")
    }
    result = {**referred, **beside}
    if differing:
        result["allOf"] = [*result.get("allOf", []), differing]
    return result


def _look_up(reference: str, root: Schema) -> tuple[Any, Schema]:
    document, _, pointer = reference.partition("#")
    if document == _SHARED:
        root = shared()
    elif document:
        raise BadSchemaError(f'the reference "{reference}" is not to {_SHARED} nor within the file')
    node: Any = root
    for step in steps(pointer):
        if not isinstance(node, dict) or step not in node:
            raise BadSchemaError(f'the reference "{reference}" leads nowhere')
        node = node[step]
    return node, root


def compose(schema: Schema, name: str, base: tuple[Schema, str] | None = None) -> Shape:
    """Return the shape of an algorithm's configuration, or of a schedule's with its ``base``."""
    own = _Parts(schema)
    owners = dict.fromkeys([*own.arguments, *own.settings], name)
    if base is None:
        return _shape(name, own, own.settings, own.entry_required, [own.rules], {}, owners)
    other, other_name = _Parts(base[0]), base[1]
    provides = {
        key: setting["x-provides"]
        for key, setting in own.settings.items()
        if isinstance(setting, dict) and "x-provides" in setting
    }
    provided = set(provides.values())
    kept = {key: value for key, value in other.settings.items() if key not in provided}
    for key in [*other.arguments, *kept]:
        owners.setdefault(key, other_name)
    required = [*own.entry_required, *(k for k in other.entry_required if k not in provided)]
    settings = {**own.settings, **{k: v for k, v in kept.items() if k not in own.settings}}
    title, rules = f"{name} around {other_name}", [own.rules, other.rules]
    shape = _shape(title, own, settings, required, rules, provides, owners)
    shape.entry["x-entry"]["closed"] = own.entry_closed and other.entry_closed
    return shape._replace(
        arguments={**other.arguments, **own.arguments},
        required=tuple(dict.fromkeys([*own.required, *other.required])),
        runtime={**other.runtime, **own.runtime},
        base_arguments=frozenset([*other.arguments, *other.runtime]),
        base_settings=frozenset(other.settings),
        closed=own.closed and other.closed,
        rules=(own.arguments_rules, other.arguments_rules),
    )


class _Parts:
    """A plugin's schema, taken apart."""

    def __init__(self, schema: Schema) -> None:
        full = expand(schema, schema)
        self.arguments: dict[str, Schema] = dict(_mapping(full, "properties"))
        self.config_list = dict(self.arguments.pop("config_list", {"type": "array"}))
        entry = self.config_list.pop("items", {})
        self.settings = dict(_mapping(entry, "properties"))
        self.entry_required = list(entry.get("required", ()))
        self.rules = {key: value for key, value in entry.items() if key not in _MERGED}
        self.entry_closed = entry.get("additionalProperties", True) is False
        about = _MERGED | _ABOUT
        self.arguments_rules = {key: value for key, value in full.items() if key not in about}
        self.closed = full.get("additionalProperties", True) is False
        self.required = list(full.get("required", ()))
        facts = _mapping(full, "x-engine")
        self.runtime = dict(_mapping(facts, "runtime_arguments"))
        if "calibration" in facts:
            for name in ("batches", "forward", "states_folder"):
                self.arguments.setdefault(name, shared_definition(name))


def _mapping(node: Any, key: str) -> Schema:
    value = node.get(key, {}) if isinstance(node, dict) else None
    if not isinstance(value, dict):
        raise BadSchemaError(f'"{key}" is not an object')
    return value


def _shape(
    title: str,
    own: _Parts,
    settings: dict[str, Schema],
    required: Iterable[str],
    rules: list[Schema],
    provides: dict[str, str],
    owners: dict[str, str],
) -> Shape:
    for name in SELECTION:
        settings = {**settings, name: settings.get(name, shared_definition(name))}
    entry: Schema = {
        "type": "object",
        "title": "a mapping of settings",
        "properties": settings,
        "x-entry": {"required": list(dict.fromkeys(required)), "closed": own.entry_closed},
    }
    _add_rules(entry, rules)
    return Shape(
        title,
        own.arguments,
        tuple(own.required),
        own.config_list,
        entry,
        provides,
        owners,
        frozenset([*own.arguments, *own.runtime]),
        frozenset(),
        frozenset(),
        own.runtime,
        own.closed,
        (own.arguments_rules,),
    )


def _add_rules(schema: Schema, rules: Iterable[Schema]) -> None:
    """Let further keywords hold of what ``schema`` describes; several may hold the same one."""
    for rule in rules:
        if rule.keys().isdisjoint(schema):
            schema.update(rule)
        else:  # stay together: "then" belongs to the "if" beside it
            also = {**rule, "properties": schema["properties"]}
            schema["allOf"] = [*schema.get("allOf", []), also]


def section(shape: Shape, fixed: Schema | None = None) -> Schema:
    """Return the schema of a compression section of this shape.

    ``fixed`` is the schema of the keys that every section has; without it, the section holds the
    arguments and ``config_list`` alone, as they are given in Python.
    """
    listed: Schema = {**shape.config_list, "items": shape.entry}
    properties = {**shape.arguments, "config_list": listed}
    required = list(shape.required)
    if fixed is not None:
        properties = {**fixed["properties"], **properties}
        required = [*fixed["required"], *required]
    whole = {
        "type": "object",
        "properties": properties,
        "required": list(dict.fromkeys(required)),
        "additionalProperties": not shape.closed,
    }
    _add_rules(whole, shape.rules)
    return whole
