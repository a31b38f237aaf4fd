"""Checks of what a plugin says of itself: its schema and its metadata. Nothing is imported."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import importlib_metadata

from engine import config
from engine.config import schema as shapes
from engine.config.choose import choose
from engine.config.describe import types
from engine.errors import nearest
from engine.export.expressible import EXPRESSES
from engine.plugins import registry
from engine.plugins.registry import ALGORITHMS, EXPORTERS, OWN_DISTRIBUTION
from engine.plugins.registry.scan import normalised
from engine.testing.outcome import CHECKS, CheckSkippedError, check, require
from engine.testing.settings import extension_arguments, hints_of, settings_for
from engine.testing.subject import Subject

#: What a line of ``engine list-algorithms`` has room for, names being short.
_SUMMARY = 70
#: The keywords of JSON Schema 2020-12; whatever else stands in a schema is misspelt, or an x-.
_KEYWORDS = frozenset(
    """
    $id $schema $ref $anchor $dynamicRef $dynamicAnchor $vocabulary $comment $defs
    additionalProperties allOf anyOf const contains contentEncoding contentMediaType contentSchema
    default dependentRequired dependentSchemas deprecated description else enum examples
    exclusiveMaximum exclusiveMinimum format if items maxContains maxItems maxLength maxProperties
    maximum minContains minItems minLength minProperties minimum multipleOf not oneOf pattern
    patternProperties prefixItems properties propertyNames readOnly required then title type
    unevaluatedItems unevaluatedProperties uniqueItems writeOnly
    """.split()  # noqa: SIM905
)
#: Keywords whose value maps names of the author's choice to schemas.
_MAPS = ("properties", "patternProperties", "$defs", "dependentSchemas")
#: Keywords whose value is data, not a schema.
_DATA = ("default", "examples", "enum", "const", "required", "dependentRequired")


@check(runs_code=False)
def it_is_usable(subject: Subject) -> str:
    """Its entry point, schema and API version are in order."""
    plugin = subject.plugin
    built_in = any(
        other.name == plugin.name and other.comes_from(OWN_DISTRIBUTION)
        for other in registry.in_group(plugin.group)
    )
    if plugin.status == "clash" and not built_in:  # with a neighbour: no fault of its own
        return f"here its name clashes: {plugin.reason}"
    require(plugin.status == "ok", f"{plugin.status}: {plugin.reason}")
    return ""


@check(runs_code=False)
def the_schema_is_json_schema(subject: Subject) -> None:
    """schema.json is JSON Schema 2020-12, without keywords that it does not know."""
    from engine.config import validator

    schema = _schema(subject)
    # Before the rules of JSON Schema, which say of a type only that it fits none of its own.
    for place, kinds in _types(schema):
        for kind in kinds:
            known = ("array", "boolean", "integer", "null", "number", "object", "string")
            near = nearest(str(kind), known)
            hint = f', did you mean "{near}"?' if near else f", known are {', '.join(known)}"
            require(kind in known, f'{place or "/"}: unknown type "{kind}"{hint}')
    fault = validator.fault(schema)
    require(fault is None, f"{fault}")
    shapes.expand(schema, schema)  # BadSchemaError where a reference leads nowhere
    for place, keyword in _keywords(schema):
        if keyword not in _KEYWORDS and not keyword.startswith("x-"):
            near = nearest(keyword, _KEYWORDS)
            hint = f', did you mean "{near}"?' if near else ""
            require(False, f'{place or "/"}: unknown keyword "{keyword}"{hint}')


@check(runs_code=False)
def the_schema_is_complete(subject: Subject) -> None:
    """It has title, summary and example, describes every setting, and allows no others."""
    schema, plugin = _schema(subject), subject.plugin
    require(schema.get("title"), 'there is no "title"')
    require(plugin.summary, "x-engine.summary is empty")
    length = len(plugin.summary)
    require(length <= _SUMMARY, f"x-engine.summary has {length} characters; {_SUMMARY} fit")
    if plugin.paper:
        lacking = [key for key in ("title", "authors", "year") if key not in plugin.paper]
        require(not lacking, f"x-engine.paper lacks {', '.join(lacking)}")
        require({"arxiv", "url"} & plugin.paper.keys(), "x-engine.paper has no arxiv and no url")
    shape = choose(plugin, {}, []).shape
    settings = {**{k: v for k, v in shape.arguments.items() if k in shape.own_arguments}}
    if plugin.group == ALGORITHMS:
        require("config_list" in schema.get("properties", {}), "config_list is no property")
        require(
            isinstance(schema.get("examples"), list) and schema["examples"],
            'there are no "examples"',
        )
        owned = {k: v for k, v in shape.entry["properties"].items() if shape.owners.get(k)}
        settings |= {k: v for k, v in owned.items() if shape.owners[k] == plugin.name}
        require(
            not (plugin.finds_sparsity and "sparsity" in owned),
            'x-engine.sparsity is "outcome", and an entry has a setting "sparsity"',
        )
        require(shape.entry["x-entry"]["closed"], "an entry allows any setting: misspelt ones pass")
    if plugin.group == EXPORTERS:
        require(plugin.endings, "x-engine.endings names no endings of files")
        require(plugin.expresses, "x-engine.expresses says nothing of what the format holds")
        for name in plugin.expresses:
            near = nearest(name, EXPRESSES)
            hint = f', did you mean "{near}"?' if near else f", known are {', '.join(EXPRESSES)}"
            require(name in EXPRESSES, f'x-engine.expresses has an unknown key "{name}"{hint}')
    for name, setting in settings.items():
        require(setting.get("description"), f'"{name}" has no description')
        typed = types(setting) or setting.keys() & {"enum", "const", "anyOf", "oneOf"}
        require(typed, f'"{name}" has no type')
    require(
        schema.get("additionalProperties") is False,
        "additionalProperties is not false: misspelt arguments pass",
    )
    for name in subject.expected_failures:
        near = nearest(name, [each.name for each in CHECKS])
        hint = f', did you mean "{near}"?' if near else ""
        known = any(name == each.name for each in CHECKS)
        require(known, f'x-engine.check.expected_failures: there is no check "{name}"{hint}')
    unknown = hints_of(plugin).keys() - {"model", "entry", "arguments", "expected_failures"}
    require(not unknown, f"x-engine.check has unknown keys: {', '.join(sorted(unknown))}")


@check(runs_code=False)
def defaults_are_valid(subject: Subject) -> None:
    """Each default is a value that its own schema allows."""
    from engine.config import validator

    _schema(subject)
    shape = choose(subject.plugin, {}, []).shape
    listed = {**shape.config_list, "items": shape.entry}
    for name, setting in {
        **shape.arguments,
        **shape.entry["properties"],
        "config_list": listed,
    }.items():
        if "default" in setting:
            errors = validator.errors(setting, setting["default"])
            require(
                not errors, f'the default of "{name}" is not valid: {errors and errors[0].message}'
            )


@check(runs_code=False)
def examples_are_valid(subject: Subject) -> None:
    """Each example is accepted by the engine, and so is the least that is needed."""
    from engine.config import validator

    schema, plugin = _schema(subject), subject.plugin
    shape = choose(plugin, {}, []).shape
    for place, example in enumerate(schema.get("examples", [])):
        if plugin.group == ALGORITHMS:
            require(isinstance(example, dict), f"example {place} is no object")
            config.check({"compressor": plugin.qualified_name, **example})
        else:
            rules = shapes.section(shape)
            del rules["properties"]["config_list"]
            for error in validator.errors(rules, example):
                require(False, f"example {place}: {error.message}")
    if plugin.group == ALGORITHMS:
        config.check({"compressor": plugin.qualified_name, **settings_for(plugin)})
    else:
        extension_arguments(plugin)


@check(runs_code=False)
def its_requirements_are_installed(subject: Subject) -> str:
    """Every distribution that it requires is installed."""
    name = subject.plugin.distribution
    try:
        requirements = importlib_metadata.requires(name) or []
    except importlib_metadata.PackageNotFoundError:
        raise CheckSkippedError(f"{name} has no metadata") from None
    wanted = [line for line in requirements if ";" not in line]
    missing = [line for line in wanted if not _is_installed(_name(line))]
    require(not missing, f"{name} requires {', '.join(missing)}: pip install {' '.join(missing)}")
    return ", ".join(map(_name, wanted))


def _schema(subject: Subject) -> dict[str, Any]:
    if subject.plugin.fault is not None:
        raise CheckSkippedError("the plugin is not usable")
    return subject.plugin.schema


def _name(requirement: str) -> str:
    """Return the distribution's name at the beginning of a requirement (PEP 508)."""
    end = next(
        (i for i, c in enumerate(requirement) if not (c.isalnum() or c in "-_.")), len(requirement)
    )
    return normalised(requirement[:end])


def _is_installed(name: str) -> bool:
    try:
        importlib_metadata.distribution(name)
    except importlib_metadata.PackageNotFoundError:
        return False
    return True


def _keywords(schema: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Yield every keyword of a schema and of those within it, with its place."""
    for at, node in _nodes(schema, place):
        for keyword in node:
            yield at, keyword


def _types(schema: Any) -> Iterator[tuple[str, list[str]]]:
    for at, node in _nodes(schema, ""):
        if isinstance(node.get("type", ""), (str, list)):
            yield at, types(node)


def _nodes(schema: Any, place: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(schema, list):
        for index, item in enumerate(schema):
            yield from _nodes(item, f"{place}/{index}")
    elif isinstance(schema, dict):
        yield place, schema
        for keyword, value in schema.items():
            if keyword in _MAPS and isinstance(value, dict):
                for name, inner in value.items():
                    yield from _nodes(inner, f"{place}/{keyword}/{name}")
            elif keyword not in _DATA and not keyword.startswith("x-"):
                yield from _nodes(value, f"{place}/{keyword}")
