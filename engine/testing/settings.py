"""What a plugin is configured with while it is checked: as little as its schema allows."""

from __future__ import annotations

from typing import Any

from engine import config
from engine.config import fill
from engine.config.choose import choose
from engine.config.schema import SELECTION
from engine.errors import ConfigError, PluginError
from engine.plugins.registry import Plugin

#: Settings of an entry that are taken from the example although the schema has a default.
_FROM_EXAMPLE = {"quant_types", "quant_bits"}
#: Bits that are tried in turn where a quantizer takes several: few, so that a grid is coarse.
_BITS = (3, 4, 8, 2, 1)

Settings = dict[str, Any]


def hints_of(plugin: Plugin) -> Settings:
    """Return ``x-engine.check`` of a plugin's schema; empty where there is none that can be used.

    ``entry`` and ``arguments`` are merged into what the plugin is checked with, ``model``
    ("module:function") names a function that returns a model and its example inputs (a tensor or
    a tuple), and ``expected_failures`` maps names of checks to reasons.
    """
    try:
        hints = plugin.schema["x-engine"].get("check")
    except PluginError:
        return {}
    return hints if isinstance(hints, dict) else {}


def settings_for(plugin: Plugin, sparsity: float = 0.5, base: Plugin | None = None) -> Settings:
    """Return ``config_list`` and arguments for an algorithm's class, for all its default layers.

    What the schema requires is taken from its first example, everything else has its default;
    whatever asks for a sparsity asks for ``sparsity``. ``base`` is the pruner inside a schedule; by
    default the schema's.
    """
    inside = {str(plugin.base_argument): base.qualified_name} if base is not None else {}
    chosen = choose(plugin, inside, [])
    shape, examples = chosen.shape, [_example(plugin)]
    if chosen.base is not None:
        examples.insert(0, _example(chosen.base))
    arguments: Settings = {}
    entry: Settings = {}
    for example in examples:
        arguments.update({k: v for k, v in example.items() if k in shape.required})
        entry.update(_first_entry(example))
    wanted = {*_FROM_EXAMPLE, *shape.entry["x-entry"]["required"]}
    entry = {k: v for k, v in entry.items() if k in wanted and k not in SELECTION}
    for name in shape.entry["properties"]:
        if name == "sparsity" or shape.provides.get(name) == "sparsity":
            entry[name] = sparsity
    hints = hints_of(plugin)
    entry = {**entry, "op_types": ["default"], **hints.get("entry", {})}
    return {**arguments, **inside, **hints.get("arguments", {}), "config_list": [entry]}


def extension_arguments(plugin: Plugin) -> Settings:
    """Return the arguments of an extension: its first example, completed with defaults."""
    given = {**_example(plugin), **hints_of(plugin).get("arguments", {})}
    return fill.mapping(given, choose(plugin, {}, []).shape.arguments)


def longest(plugin: Plugin, settings: Settings, unit: str) -> int:
    """Return the largest of the settings that count ``unit`` ("epochs"); 0 where none does."""
    shape = choose(plugin, settings, []).shape
    checked = config.check({"compressor": plugin.qualified_name, **settings})
    schemas = {**shape.arguments, **shape.entry["properties"]}
    values = [*checked.arguments.items(), *checked.entries[0].items()]
    return max(
        (
            value
            for name, value in values
            if schemas.get(name, {}).get("x-unit") == unit and isinstance(value, int)
        ),
        default=0,
    )


def coarse(plugin: Plugin, *quant_types: str) -> Settings | None:
    """Return a quantizer's settings with few bits for ``quant_types``; None where it refuses them.

    Without ``quant_types``: for those of its example.
    """
    for bits in _BITS:
        settings = settings_for(plugin)
        entry = settings["config_list"][0]
        if quant_types:
            entry["quant_types"] = list(quant_types)
        entry["quant_bits"] = bits
        try:
            config.check({"compressor": plugin.qualified_name, **settings})
        except ConfigError:
            continue
        return settings
    return None


def _example(plugin: Plugin) -> Settings:
    examples = plugin.schema.get("examples")
    first = examples[0] if isinstance(examples, list) and examples else {}
    return first if isinstance(first, dict) else {}


def _first_entry(example: Settings) -> Settings:
    entries = [entry for entry in example.get("config_list", ()) if not entry.get("exclude")]
    return entries[0] if entries else {}
