"""``engine validate FILE``: whether a configuration is right, and what it means."""

from __future__ import annotations

import argparse
import sys
import warnings
from typing import Any

from engine import config
from engine.config import Settings, schema


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("file", metavar="FILE", help="a YAML or JSON file")
    parser.add_argument(
        "--model",
        metavar="MODULE:FACTORY",
        help="a function that returns the model: show which layer gets what, change nothing",
    )


def run(args: argparse.Namespace) -> int:
    """Print what the file means. ConfigError, which lists the problems, when it is wrong."""
    settings = read(args.file)
    print("\n".join(confirmation(settings)))
    if args.model is not None:
        from engine.cli import dry_run  # imports torch

        print("\n".join(["", *dry_run.layers(settings, args.model)]))
    return 0


def read(path: str) -> Settings:
    """Return what a file means; notices that it is of an old format go to stderr."""
    with warnings.catch_warnings(record=True) as notices:
        warnings.simplefilter("always", DeprecationWarning)
        settings = config.check(path)
    for notice in notices:
        print(f"note: {notice.message}", file=sys.stderr)
    return settings


def confirmation(settings: Settings) -> list[str]:
    """Return what a configuration was understood to mean, in a few lines."""
    name = settings.plugin.name
    if settings.base_plugin is not None:
        name += f" around {settings.base_plugin.name}"
    lines = [f"{settings.document.source}: ok", f"  {settings.kind} by {name}"]
    if settings.arguments:
        lines.append(f"  {_words(settings.arguments)}")
    lines += [f"  extension {e.name} {_words(e.arguments)}".rstrip() for e in settings.extensions]
    hidden = set() if settings.base_plugin is None else _provided(settings)
    for index, entry in enumerate(settings.entries):
        shown = {key: item for key, item in entry.items() if key not in hidden}
        if not shown.get("exclude"):
            shown.pop("exclude", None)
        lines.append(f"  entry {index}: {_words(shown)}")
    return lines


def _provided(settings: Settings) -> set[str]:
    """Return what entries hold only under the name that the pruner inside has for it."""
    shape = schema.compose(settings.plugin.schema, settings.plugin.name)
    own: dict[str, Any] = shape.entry["properties"]
    provided = {str(each["x-provides"]) for each in own.values() if "x-provides" in each}
    return provided - own.keys()


def _words(values: dict[str, Any]) -> str:
    return ", ".join(f"{key} {_word(item)}" for key, item in values.items())


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return f"[{', '.join(map(_word, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_word(item)}" for key, item in value.items()) + "}"
    return f"{value:g}" if isinstance(value, float) else str(value)
