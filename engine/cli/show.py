"""``engine show NAME``: how an algorithm is configured, where it is from, and an example."""

from __future__ import annotations

import argparse
from typing import Any

from engine.cli.list_algorithms import facts
from engine.cli.table import table
from engine.config.choose import choose
from engine.config.describe import needs
from engine.config.formats import example_command, format_facts
from engine.config.plain import show as spelt
from engine.config.schema import Shape
from engine.plugins import registry
from engine.plugins.registry import Plugin

_HEADER = ("NAME", "DEFAULT", "VALUE")
_LIMITS = (28, 20, 100)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("name", metavar="NAME", help="a name, class or alias")
    parser.add_argument(
        "--json", action="store_true", help="print all facts and the schema as JSON"
    )
    parser.add_argument("--extension", action="store_true", help="NAME is an extension")
    parser.add_argument(
        "--exporter",
        action="store_true",
        help="NAME is an exporter",
    )


def run(args: argparse.Namespace) -> int:
    """Print the page of one plugin. PluginError, which says why, when it cannot be used."""
    plugin = registry.find(args.name, _group(args))
    shape = choose(plugin, {}, []).shape
    if args.json:
        import json

        everything = {
            **facts(plugin),
            "title": plugin.schema.get("title", ""),
            "description": plugin.schema.get("description", ""),
            "runtime_arguments": plugin.runtime_arguments,
            "example": example(plugin),
            "schema": plugin.schema,
        }
        print(json.dumps(everything, indent=2, ensure_ascii=False))
        return 0
    print("\n\n".join(filter(None, _parts(plugin, shape))))
    return 0


def _group(args: argparse.Namespace) -> str:
    """Return where to look NAME up: an exporter is found where no algorithm has its name."""
    if args.extension:
        return registry.EXTENSIONS
    if args.exporter:
        return registry.EXPORTERS
    algorithm = registry.resolve(args.name, registry.ALGORITHMS)
    if isinstance(algorithm, Plugin) or algorithm.plugin is not None:
        return registry.ALGORITHMS
    exporter = registry.resolve(args.name, registry.EXPORTERS)
    if isinstance(exporter, Plugin) or exporter.plugin is not None:
        return registry.EXPORTERS
    nearer = exporter.suggestion and not algorithm.suggestion
    return registry.EXPORTERS if nearer else registry.ALGORITHMS


def _parts(plugin: Plugin, shape: Shape) -> list[str]:
    own = {k: v for k, v in shape.arguments.items() if k in shape.own_arguments}
    settings = {
        key: schema
        for key, schema in shape.entry["properties"].items()
        if shape.owners.get(key, plugin.name) == plugin.name
    }
    parts = [_head(plugin)]
    if plugin.group == registry.ALGORITHMS:
        title = "Settings of an entry of config_list"
        if "default" in shape.config_list:
            title += f" (without any: {_compact(shape.config_list['default'])})"
        parts.append(_settings(title, settings, shape.entry["x-entry"]["required"]))
        if plugin.base_argument:
            parts[-1] += f"\n\n  and those of the algorithm that {plugin.base_argument} names"
    title = "Options" if plugin.group == registry.EXPORTERS else "Arguments"
    parts.append(_settings(title, own, list(shape.required)))
    if plugin.runtime_arguments:
        lines = [f"  {name}: {text}" for name, text in plugin.runtime_arguments.items()]
        parts.append("\n".join(["Arguments that only Python can give", *_wrapped(lines)]))
    parts.append(_example_text(plugin))
    return parts


def _head(plugin: Plugin) -> str:
    title = plugin.schema.get("title") or plugin.summary
    description = plugin.schema.get("description", "")
    paper = plugin.paper
    where = f"arXiv:{paper['arxiv']}" if "arxiv" in paper else paper.get("url", "")
    lines = [f"{plugin.name}: {title}", *([description] if description else []), ""]
    rows = [
        ("kind", plugin.label),
        ("class", plugin.value),
        ("distribution", plugin.origin),
        ("status", plugin.status),
        ("sparsity", "an outcome: it is asked for none" if plugin.finds_sparsity else ""),
        ("extends", plugin.extends),
        ("paper", ". ".join(str(paper[k]) for k in ("authors", "title", "year") if k in paper)),
        ("", where),
        ("also called", ", ".join(plugin.aliases)),
        *format_facts(plugin),
    ]
    lines += [f"  {key:<14}{text}".rstrip() for key, text in rows if text]
    return "\n".join(_wrapped(lines))


def _wrapped(lines: list[str]) -> list[str]:
    import textwrap

    result: list[str] = []
    for line in lines:
        hang = " " * 16 if line.startswith("  ") else ""
        result += textwrap.wrap(line, 100, subsequent_indent=hang, drop_whitespace=True) or [""]
    return result


def _settings(title: str, schemas: dict[str, Any], required: list[str]) -> str:
    if not schemas:
        return ""
    import textwrap

    rows = []
    for name, schema in schemas.items():
        default = "required" if name in required else "none"
        if "default" in schema:
            default = _compact(schema["default"])
        unit = f" ({schema['x-unit']})" if "x-unit" in schema else ""
        rows.append((name, default, needs(schema, name) + unit))
    lines = table(_HEADER, rows, _LIMITS)
    texts = [str(schema.get("description", "")) for schema in schemas.values()]
    body = lines.splitlines()
    result = [title, body[0]]
    for line, text in zip(body[1:], texts, strict=True):
        result.append(line)
        result += textwrap.wrap(text, 96, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(result)


def _compact(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_compact, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_compact(item)}" for key, item in value.items()) + "}"
    return value if isinstance(value, str) and value else spelt(value)


def example(plugin: Plugin) -> dict[str, Any] | None:
    """Return a configuration that validates: the first example of the schema, made whole."""
    examples = plugin.schema.get("examples")
    if not isinstance(examples, list) or not examples or not isinstance(examples[0], dict):
        return None
    if plugin.group == registry.EXPORTERS:
        return dict(examples[0])
    if plugin.group != registry.ALGORITHMS:
        return {"extensions": [{plugin.name: examples[0]}]}
    name = plugin.name if plugin.status == "ok" else plugin.qualified_name
    section = {"framework": "torch", "type": plugin.kind, "compressor": name, **examples[0]}
    return {"compression": section}


def _example_text(plugin: Plugin) -> str:
    data = example(plugin)
    if data is None:
        return ""
    if plugin.group == registry.EXPORTERS:
        return f"Example\n  {example_command(plugin, data)}"
    import yaml

    text = yaml.safe_dump(data, sort_keys=False, default_flow_style=None, width=90)
    return "\n".join(["Example", *(f"  {line}" for line in text.splitlines())])
