"""What an exporter's schema says of its format, as lines for people: its page, ``engine show``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from engine.config.plain import show
from engine.plugins.registry import Plugin

_WORDS = {"pruning": "pruned models", "quantization": "quantized models"}


def format_facts(plugin: Plugin) -> list[tuple[str, str]]:
    """Return title and text of what an exporter writes and holds; nothing of another plugin."""
    if plugin.kind != "exporter":
        return []
    can = plugin.expresses
    endings = ["a folder" if each == "/" else each for each in plugin.endings]
    activations = "inputs and outputs" if can.get("activations", True) else ""
    rows = [
        ("writes", _listed(endings)),
        ("of", _listed(_WORDS.get(kind, str(kind)) for kind in can.get("kinds", ()))),
        ("layers", _listed(can.get("layers", ()))),
        ("weights", _listed(can.get("weights", ()))),
        ("bits", _listed(can.get("bits", ()))),
        ("groups of", _listed(can.get("group_sizes", ()))),
        ("activations", activations or "none are quantized"),
        ("example", "inputs are needed" if can.get("example") else ""),
        ("needs", _listed(dict.fromkeys(plugin.needs.values()))),
        ("read by", _listed(plugin.reader) or "the engine"),
    ]
    return [(title, text) for title, text in rows if text]


def example_command(plugin: Plugin, options: Mapping[str, Any]) -> str:
    """Return a call of ``engine export`` with ``options``."""
    ending = next(iter(plugin.endings), "")
    output = "folder" if ending == "/" else f"model{ending}"
    given = "".join(f" --set {key}={_value(value)}" for key, value in options.items())
    model = "--model MODULE:FACTORY"
    return f"engine export FILE {model} --to {plugin.name} --output {output}{given}"


def _value(value: Any) -> str:
    text = value if isinstance(value, str) else show(value)
    return f"'{text}'" if set(text) & set(' {}[]"') else text


def _listed(values: Iterable[Any]) -> str:
    return ", ".join(str(value) for value in values)
