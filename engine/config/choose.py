"""Which algorithm a configuration names, which pruner is inside, and what both may be told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

from engine.config import quick, schema
from engine.config.document import Document
from engine.config.messages import Found
from engine.config.plain import escape, steps
from engine.config.schema import BadSchemaError, Schema, Shape
from engine.errors import ConfigError, PluginError
from engine.plugins import registry
from engine.plugins.registry import Plugin, Refusal


class Choice(NamedTuple):
    """An algorithm, the pruner inside if it is a schedule, and the shape of their configuration."""

    plugin: Plugin | None
    base: Plugin | None
    shape: Shape


def choose(
    plugin: Plugin | None,
    arguments: Mapping[str, Any],
    found: list[Found],
    pointer: str = "",
    *,
    argument: str | None = None,
    base: Plugin | None = None,
    base_schema: Schema | None = None,
) -> Choice:
    """Return an algorithm with the pruner that ``arguments`` name, if it is a schedule.

    What is wrong with the name is added to ``found``. ``base`` or ``base_schema`` is the pruner
    when it is known already; ``plugin`` is None for a schedule without a schema, whose pruner
    ``argument`` names.
    """
    own = _shape(plugin)
    argument = plugin.base_argument if plugin is not None else argument
    if argument is None:
        return Choice(plugin, None, own)
    name = arguments.get(argument, own.arguments.get(argument, {}).get("default"))
    place = f"{pointer}/{escape(argument)}"
    before = len(found)
    if base is None and base_schema is None:
        if name is None and plugin is None:
            found.append(Found(pointer, f'"{argument}" is missing'))
        base = look_up(name, found, place)
    owner = plugin.name if plugin is not None else "a schedule"
    if base is not None and base.role != "provider":
        message = f"{base.name} is a {base.role} itself"
        found.append(Found(place, message, f"{owner} needs: an algorithm that is none"))
    elif base is not None and base.finds_sparsity:
        message = f"{base.name} finds its sparsity itself"
        allowed = f"{owner} needs: a pruner that can be asked for one; use {base.name} alone"
        found.append(Found(place, message, allowed))
    elif base is not None and plugin is not None and base.kind != plugin.kind:
        message = f"{base.name} is a {base.kind} algorithm"
        found.append(Found(place, message, f"{owner} needs: a {plugin.kind} algorithm"))
    if len(found) > before or (base is None and base_schema is None):
        # What else stands there may be the missing pruner's: no reason to call it unknown.
        own.entry["x-entry"]["closed"] = False
        return Choice(plugin, None, own._replace(closed=False))
    return Choice(plugin, base, _shape(plugin, base, base_schema))


def look_up(
    name: object, found: list[Found], pointer: str, group: str = registry.ALGORITHMS
) -> Plugin | None:
    """Return the plugin called ``name``; None, and why in ``found``, when there is none."""
    if not isinstance(name, str):
        return None  # the schema says so
    plugin = registry.resolve(name, group)
    if isinstance(plugin, Refusal):
        found.append(Found(pointer, plugin.message, plugin.allowed, plugin.suggestion))
        return None
    return plugin


def _shape(
    plugin: Plugin | None, base: Plugin | None = None, base_schema: Schema | None = None
) -> Shape:
    if base is not None:
        base_schema = base.schema
    own, name = ({}, "this schedule") if plugin is None else (plugin.schema, plugin.name)
    try:
        if base_schema is None:
            return schema.compose(own, name)
        base_name = base.name if base is not None else str(base_schema.get("title"))
        return schema.compose(own, name, (base_schema, base_name))
    except (BadSchemaError, TypeError, AttributeError, ValueError, RecursionError) as error:
        culprit = base or plugin
        assert culprit is not None, "the engine's own schemas are good"
        raise _bad_schema(culprit, str(error)) from error


def errors(rules: Schema, instance: Any, *plugins: Plugin | None) -> list[Any]:
    """Return the errors of ``instance``. PluginError when the rules of a plugin are no good."""
    try:
        if quick.accepts(rules, instance):
            return []
    except Exception:  # a schema that is no good: jsonschema tells in what
        pass
    from engine.config import validator

    try:
        return validator.errors(rules, instance)
    except Exception as error:
        for plugin in filter(None, plugins):
            reason = validator.fault(plugin.schema)
            if reason:
                raise _bad_schema(plugin, reason) from error
        raise


def _bad_schema(plugin: Plugin, reason: str) -> PluginError:
    message = (
        f"{plugin.name} ({plugin.origin}) is broken: schema.json cannot be used\n"
        f"  {reason}\n"
        f'  reinstall or upgrade {plugin.distribution}, or set ENGINE_BLOCK="{plugin.distribution}"'
    )
    return PluginError(message, plugin=plugin.name, distribution=plugin.origin)


def fail(found: Sequence[Found], document: Document) -> NoReturn:
    """Raise the ConfigError for what was found, in the order of the document."""

    def place(each: Found) -> list[int]:
        at, positions = document.data, []
        for step in steps(each.pointer):
            if isinstance(at, dict):
                positions.append(list(at).index(step) if step in at else len(at))
                at = at.get(step)
            elif isinstance(at, list) and step.isdecimal() and int(step) < len(at):
                positions.append(int(step))
                at = at[int(step)]
        return positions

    problems = dict.fromkeys(
        document.problem(each.message, each.pointer, each.allowed, each.suggestion)
        for each in sorted(found, key=place)
    )
    raise ConfigError(list(problems), document.source)
