"""The options of a plugin that has no ``config_list``: an extension, an exporter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.config import fill, schema
from engine.config.choose import choose, errors
from engine.config.messages import Found, Words
from engine.errors import ConfigError, Problem
from engine.plugins.registry import Plugin


def mistakes(
    plugin: Plugin, given: Mapping[str, Any], found: list[Found], pointer: str = ""
) -> dict[str, Any]:
    """Return ``given`` with defaults filled in; what is wrong with it is added to ``found``."""
    shape = choose(plugin, {}, found).shape
    rules = schema.section(shape)
    del rules["properties"]["config_list"]
    words = Words(None, plugin.name, python=True)
    found += words.found(errors(rules, dict(given), plugin), pointer)
    return fill.mapping(dict(given), shape.arguments)


def check_options(plugin: Plugin, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a plugin, completed by its schema.

    Raises:
        ConfigError: options that it has not, or values that they may not have; all at once.
    """
    found: list[Found] = []
    options = mistakes(plugin, given, found)
    if found:
        problems = [Problem(f.message, f.pointer, None, f.allowed, f.suggestion) for f in found]
        raise ConfigError(problems, plugin.name)
    return options
