"""``engine validate FILE``: whether a configuration is right, and what it means."""

from __future__ import annotations

import argparse
import sys
import warnings
from typing import Any

from engine import config
from engine.config import Document, Search, Settings, schema
from engine.errors import EngineError, printable
from engine.experiment import Experiment, read_experiment


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
    document = read_document(args.file)
    search = None
    if is_experiment(document):
        experiment = read_experiment(document)
        tell_notes(experiment)
        settings, search = experiment.settings, experiment.search
    elif config.is_automatic(document):
        search = config.check_search(document)
        settings = search.settings
    else:
        settings = config.check(document)
    lines = confirmation(settings) if search is None else searched(search)
    print(printable("\n".join(lines)))
    if args.model is not None:
        if search is not None:
            raise EngineError("--model shows a one-time experiment; this one is automatic")
        from engine.cli import dry_run  # imports torch

        print("\n".join(["", *dry_run.layers(settings, args.model)]))
    return 0


def read_document(path: str) -> Document:
    """Return what a file holds; notices that it is of an old format go to stderr."""
    with warnings.catch_warnings(record=True) as notices:
        warnings.simplefilter("always", DeprecationWarning)
        document = config.read(path)
    for notice in notices:
        print(printable(f"note: {notice.message}"), file=sys.stderr)
    return document


def tell_notes(experiment: Experiment) -> None:
    """Print what a person should know before an experiment is run to stderr."""
    for note in experiment.notes:
        print(printable(f"note: {note}"), file=sys.stderr)


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


def is_experiment(document: Document) -> bool:
    """Return whether a file says what is run, not only what is done to a model."""
    keys = {"script", "resource"}
    return isinstance(document.data, dict) and bool(keys & document.data.keys())


def searched(search: Search) -> list[str]:
    """Return what an automatic experiment was understood to search, in a few lines."""
    settings = search.settings
    name = settings.plugin.name
    if settings.base_plugin is not None:
        name += f" around {settings.base_plugin.name}"
    places = len(search.spaces)
    lines = [
        f"{settings.document.source}: ok",
        f"  automatic {settings.kind} by {name}",
        f"  {', '.join(search.directions)} by {search.proposer}, "
        f"{places} search space{'s' if places != 1 else ''}",
    ]
    for pointer, space in search.spaces.items():
        lines.append(f"  {pointer}: {_word(space.as_dict())}")
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
