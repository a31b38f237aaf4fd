"""``engine list-algorithms``: what is installed, and what of it cannot be used and why."""

from __future__ import annotations

import argparse
from typing import Any

from engine.cli.table import table
from engine.errors import EngineError
from engine.plugins import registry
from engine.plugins.registry import Plugin

_HEADER = ("NAME", "KIND", "STATUS", "DISTRIBUTION", "VERSION", "SUMMARY")
_LIMITS = (30, 10, 12, 20, 10, 100)
_ACTIVATION = """
none is active unasked: a configuration names it under "extensions", or a pruner's argument of its
name is true; they take effect in the order of that list, each around those before it, and such an
argument's first of all"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--json", action="store_true", help="print all facts as JSON")
    parser.add_argument(
        "--extensions", action="store_true", help="list the extensions instead of the algorithms"
    )
    parser.add_argument(
        "--exporters", action="store_true", help="list the formats that models are exported to"
    )


def run(args: argparse.Namespace) -> int:
    """Print the table, or the same facts and more as JSON."""
    if args.extensions and args.exporters:
        raise EngineError("--extensions and --exporters are two lists: ask for one of them")
    what = "extensions" if args.extensions else "exporters" if args.exporters else "algorithms"
    plugins = getattr(registry, what)()
    if args.json:
        import json

        print(json.dumps([facts(plugin) for plugin in plugins], indent=2, ensure_ascii=False))
        return 0
    if not plugins:
        print(f"no {what} are installed")
        return 0
    rows = [
        (
            plugin.name,
            plugin.label,
            plugin.status,
            plugin.distribution,
            plugin.version,
            plugin.reason or plugin.summary,
        )
        for plugin in plugins
    ]
    print(table(_HEADER, rows, _LIMITS))
    if args.extensions:
        print(_ACTIVATION)
    unusable = [plugin for plugin in plugins if plugin.reason]
    if unusable:
        print()
    for plugin in unusable:
        print(f"{plugin.name} ({plugin.origin}), {plugin.status}: {plugin.reason}")
    return 0


def facts(plugin: Plugin) -> dict[str, Any]:
    """Return what is known of a plugin without importing it; the keys stay as they are."""
    return {
        "name": plugin.name,
        "kind": plugin.kind,
        "role": plugin.role,
        "status": plugin.status,
        "reason": plugin.reason,
        "distribution": plugin.distribution,
        "version": plugin.version,
        "class": plugin.value,
        "api": plugin.api,
        "summary": plugin.summary,
        "paper": plugin.paper,
        "aliases": list(plugin.aliases),
        "capabilities": list(plugin.capabilities),
        **_of_format(plugin),
    }


def _of_format(plugin: Plugin) -> dict[str, Any]:
    """Return what only an exporter has."""
    if plugin.group != registry.EXPORTERS:
        return {}
    return {
        "endings": list(plugin.endings),
        "expresses": plugin.expresses,
        "needs": plugin.needs,
        "reader": plugin.reader,
    }
