"""The same checks for what a person writes in Python: ``LevelPruner(model, config_list, ...)``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from engine.config import fill, schema
from engine.config.choose import choose, errors, fail
from engine.config.messages import Found, Words
from engine.config.other_words import translated
from engine.config.reading import from_python
from engine.config.schema import SELECTION, Schema, Shape
from engine.plugins import registry
from engine.plugins.registry import Plugin

Entries = list[dict[str, Any]]
ConfigList = Sequence[Mapping[str, Any]] | None


class Composed(NamedTuple):
    """A schedule's configuration, and that of the pruner inside it.

    Attributes:
        entries: the entries with the settings of both; see ``Settings.entries``.
        arguments: the schedule's own arguments.
        base_name: the name of the pruner inside, as it was given or as the schema's default.
        base_class: its class, if a class was given.
        base_plugin: its plugin, unless it is a class that is none.
        base_entries: the entries as the pruner itself would be given them.
        base_arguments: the pruner's arguments.
    """

    entries: Entries
    arguments: dict[str, Any]
    base_name: str
    base_class: type | None
    base_plugin: Plugin | None
    base_entries: Entries
    base_arguments: dict[str, Any]


def check_entries(
    plugin: Plugin | Schema | None,
    config_list: ConfigList,
    arguments: Mapping[str, Any] | None = None,
    *,
    kind: str = "",
    source: str = "config_list",
) -> tuple[Entries, dict[str, Any]]:
    """Return entries and arguments with their defaults filled in.

    Args:
        plugin: the algorithm, a schema of the same form as a plugin's, or None for an algorithm
            without one: then only the settings that all of its kind share are checked.
        config_list: the entries; None stands for the schema's default.
        arguments: the algorithm's own arguments, and those of the pruner inside a schedule.
        kind: ``"pruning"`` or ``"quantization"``, where there is no schema to say so.
        source: what the message calls the configuration.

    Raises:
        ConfigError: something is wrong; all problems at once.
    """
    found: list[Found] = []
    given = dict(arguments or {})
    if isinstance(plugin, Plugin):
        _, base, shape = choose(plugin, given, found)
        return _checked(shape, config_list, given, found, source, plugin, base)
    rules = loose(kind) if plugin is None else plugin
    shape = schema.compose(rules, str(rules.get("title", "this algorithm")))
    return _checked(shape, config_list, given, found, source)


def check_composed(
    plugin: Plugin | None,
    config_list: ConfigList,
    arguments: Mapping[str, Any],
    *,
    base_argument: str = "pruning_algorithm",
    source: str = "config_list",
) -> Composed:
    """Return the configuration of a schedule and that of the pruner inside it, taken apart.

    ``arguments[base_argument]`` names the pruner; it may also be a class. For the rest, see
    ``check_entries``; ``plugin`` is the schedule, None for one without a schema.
    """
    found: list[Found] = []
    given = dict(arguments)
    base_argument = (plugin.base_argument if plugin is not None else None) or base_argument
    named = given.get(base_argument)
    base_class = named if isinstance(named, type) else None
    if base_class is not None:
        plugins = (registry.find_class(cls) for cls in base_class.__mro__)
        inner = next((each for each in plugins if each is not None), None)
        # A class that is no plugin may have settings of its own, which nobody can check.
        inner_schema = loose("pruning", base_class.__name__) if inner is None else None
        given[base_argument] = base_class.__name__
    else:
        inner, inner_schema = None, None
    _, base, shape = choose(
        plugin, given, found, base=inner, base_schema=inner_schema, argument=base_argument
    )
    entries, filled = _checked(shape, config_list, given, found, source, plugin, base)
    base_entries = [
        {
            key: item
            for key, item in entry.items()
            if key in shape.base_settings or key in SELECTION or key not in shape.owners
        }
        for entry in entries
    ]
    known = shape.own_arguments | shape.base_arguments | {base_argument}
    to_base = {key for key in filled if key in shape.base_arguments}
    if plugin is not None:
        to_base |= filled.keys() - known  # only a pruner without a schema leaves any
    return Composed(
        entries,
        {k: item for k, item in filled.items() if k in shape.own_arguments or k not in to_base},
        str(filled.get(base_argument)),
        base_class,
        base,
        base_entries,
        {key: filled[key] for key in filled if key in to_base},
    )


def loose(kind: str, title: str = "this algorithm") -> Schema:
    """Return the schema of an algorithm that has none: what all algorithms of its kind share."""
    name = "quantization_entry" if kind == "quantization" else "pruning_entry"
    return {
        "title": title,
        "properties": {
            "config_list": {
                "type": "array",
                "title": "a list of entries",
                "minItems": 1,
                "items": schema.shared_definition(name),
            }
        },
        "required": ["config_list"],
    }


def _checked(
    shape: Shape,
    config_list: ConfigList,
    arguments: dict[str, Any],
    found: list[Found],
    source: str,
    *plugins: Plugin | None,
) -> tuple[Entries, dict[str, Any]]:
    # What no schema knows passes as it is, if it may pass at all: an optimizer, a tensor.
    passing = {
        key: item
        for key, item in arguments.items()
        if key in shape.runtime or (not shape.closed and key not in shape.arguments)
    }
    # An unknown argument is reported as that, not for being a function.
    section = {
        key: item if key in shape.arguments else None
        for key, item in arguments.items()
        if key not in passing
    }
    if config_list is not None:
        section["config_list"] = config_list
    document = from_python(section, source)
    data = document.data
    if "config_list" in data:
        data["config_list"] = translated(data["config_list"])
    words = Words(shape, shape.title, python=True)
    found += words.found(errors(schema.section(shape), data, *plugins))
    if found:
        fail(found, document)
    entries = fill.entries(data.pop("config_list", None), shape)
    return entries, {**fill.mapping(data, shape.arguments), **passing}
