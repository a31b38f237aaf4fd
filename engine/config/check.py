"""Checks a whole configuration and returns what it means, or every mistake in it at once."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from engine.config import fill, schema, space
from engine.config.choose import choose, errors, fail, look_up
from engine.config.document import Document
from engine.config.messages import Found, Words
from engine.config.options import mistakes
from engine.config.other_words import section_of, translated
from engine.config.plain import escape, show
from engine.config.reading import read
from engine.config.schema import Schema
from engine.errors import ConfigError, nearest
from engine.plugins.registry import EXTENSIONS, Plugin


class Extension(NamedTuple):
    """An extension that a configuration asks for: its qualified name and its arguments."""

    name: str
    arguments: dict[str, Any]


class Settings(NamedTuple):
    """What a configuration means: checked, with all defaults filled in.

    Attributes:
        plugin: the algorithm.
        base_plugin: the pruner inside, when the algorithm is a schedule.
        entries: the entries of ``config_list``. Under a schedule they hold the settings of both;
            what the schedule provides stands also under the pruner's name for it.
        arguments: the algorithm's own arguments and, under a schedule, the pruner's.
        base_arguments: those of them that the pruner inside takes.
        config_list: the entries as they were given: what the class itself is called with.
        given_arguments: the arguments as they were given.
        extensions: the extensions, in order.
        kind: ``"pruning"`` or ``"quantization"``.
        document: the whole configuration, for lines and source.
        pointer: where in the document the compression section is: ``""`` or ``"/compression"``.
    """

    plugin: Plugin
    base_plugin: Plugin | None
    entries: list[dict[str, Any]]
    arguments: dict[str, Any]
    base_arguments: dict[str, Any]
    config_list: list[dict[str, Any]] | None
    given_arguments: dict[str, Any]
    extensions: list[Extension]
    kind: str
    document: Document
    pointer: str

    def located(self, error: ConfigError) -> ConfigError:
        """Return an error of the class called with ``config_list``, at the places in the file."""
        problems = []
        for each in error.problems:
            pointer = self.pointer + each.pointer
            problems.append(
                self.document.problem(each.message, pointer, each.allowed, each.suggestion)
            )
        return ConfigError(problems, self.document.source)


def check(source: str | os.PathLike[str] | Mapping[str, Any] | Document) -> Settings:
    """Return what a configuration means.

    Args:
        source: a file's path, a mapping or a Document; an experiment with a ``compression``
            section, or such a section itself.

    Raises:
        ConfigError: something is wrong; all problems at once, in the order of the document.
        PluginError: the schema of the algorithm itself cannot be used.
    """
    document = read(source)
    found: list[Found] = []
    pointer, section = _section(document, found)
    _one_value_each(section, pointer, document)
    section = section_of(without_flags(section), alone=pointer == "")
    if "config_list" in section:
        section = {**section, "config_list": translated(section["config_list"])}
    fixed = schema.shared_definition("section")
    plugin = look_up(section.get("compressor"), found, f"{pointer}/compressor")
    kind = plugin.kind if plugin is not None else ""
    if plugin is None:
        meant = _misspelt_compressor(section, fixed, found, pointer)
        if meant is not None:
            section = {**section, "compressor": meant}
        extensions = _extensions(section, kind, found, pointer)
        found += Words(None).found(errors(fixed, section), pointer)
        fail(found, document)
    _, base, shape = choose(plugin, section, found, pointer)
    rules = schema.section(shape, fixed)
    found += Words(shape).found(errors(rules, section, plugin, base), pointer)
    if section.get("type") in ("pruning", "quantization") and section["type"] != kind:
        message = f"{plugin.name} is a {kind} algorithm"
        found.append(Found(f"{pointer}/type", message, f"{plugin.name} needs: type {kind}"))
    extensions = _extensions(section, kind, found, pointer)
    if found:
        fail(found, document)
    given = {key: item for key, item in section.items() if key not in fixed["properties"]}
    arguments = fill.mapping(given, shape.arguments)
    return Settings(
        plugin,
        base,
        fill.entries(section.get("config_list"), shape),
        arguments,
        {key: item for key, item in arguments.items() if key in shape.base_arguments},
        section.get("config_list"),
        given,
        extensions,
        kind,
        document,
        pointer,
    )


def without_flags(section: dict[str, Any]) -> dict[str, Any]:
    """Return a section whose entries have no ``expand_op_names``: it is for the search alone."""
    entries = section.get("config_list")
    if not isinstance(entries, list):
        return section
    kept = [
        {key: value for key, value in entry.items() if key != "expand_op_names"}
        if isinstance(entry, dict) and isinstance(entry.get("expand_op_names"), bool)
        else entry
        for entry in entries
    ]
    return {**section, "config_list": kept}


def _one_value_each(section: dict[str, Any], pointer: str, document: Document) -> None:
    """Raise ConfigError where a search space stands: only an automatic experiment has them."""
    allowed = "engine run searches it; one configuration has one value here"
    found = [
        Found(place, "a search space stands here, a value is needed", allowed)
        for place, _ in space.find(section, pointer)
    ]
    if found:
        fail(found, document)


def _misspelt_compressor(
    section: dict[str, Any], fixed: Schema, found: list[Found], pointer: str
) -> Any:
    """Return the value under a key that looks like ``compressor``, reported in ``found``."""
    if "compressor" in section:
        return None
    unknown = [key for key in section if key not in fixed["properties"]]
    near = nearest("compressor", unknown)
    if near is None:
        return None
    allowed = f"a configuration needs: {', '.join(fixed['required'])}"
    found.append(Found(f"{pointer}/{escape(near)}", f'unknown key "{near}"', allowed, "compressor"))
    return section[near]


def _section(document: Document, found: list[Found]) -> tuple[str, dict[str, Any]]:
    """Return the compression section and its pointer, having checked what is around it."""
    data = document.data
    if not isinstance(data, dict):
        allowed = "a mapping with the keys compressor and config_list does"
        raise ConfigError(
            [document.problem("a list alone names no algorithm", "", allowed)], document.source
        )
    keys = schema.shared_definition("section")["properties"].keys()
    alone = nearest("compressor", data) is not None and not {"name", "script"} & data.keys()
    if "compression" not in data and (keys & data.keys() or alone):
        return "", data
    experiment = schema.shared_definition("experiment")
    found += Words(None, "an experiment").found(errors(experiment, data))
    section = data.get("compression")
    if not isinstance(section, dict):
        fail(found, document)
    return "/compression", section


def _extensions(
    section: dict[str, Any], kind: str, found: list[Found], pointer: str
) -> list[Extension]:
    result: list[Extension] = []
    given = section.get("extensions")
    for index, item in enumerate(given if isinstance(given, list) else ()):
        named = {item: {}} if isinstance(item, str) else item
        if not isinstance(named, dict) or len(named) != 1:
            continue  # the section's schema says what is wrong
        name, arguments = next(iter(named.items()))
        place = f"{pointer}/extensions/{index}"
        plugin = look_up(name, found, place, EXTENSIONS)
        if plugin is None or not isinstance(arguments, dict):
            continue
        if kind and plugin.kind not in (kind, "any"):
            found.append(Found(place, f"{plugin.name} is for {plugin.kind}, not for {kind}"))
        if any(plugin.qualified_name == other.name for other in result):
            found.append(Found(place, f"{show(name)} is given twice"))
        inside = f"{place}/{escape(name)}" if isinstance(item, dict) else place
        result.append(Extension(plugin.qualified_name, mistakes(plugin, arguments, found, inside)))
    return result
