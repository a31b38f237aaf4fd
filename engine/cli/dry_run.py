"""Which layer of a model gets what: ``engine validate FILE --model module:factory``."""

from __future__ import annotations

from typing import Any

from engine.cli.table import table
from engine.config import Settings
from engine.user_code.model_factory import build

_HEADER = ("LAYER", "TYPE", "SHAPE", "ENTRY", "GETS")
_LIMITS = (40, 20, 20, 5, 60)
_SELECTION = ("op_types", "op_names", "exclude")


def layers(settings: Settings, target: str) -> list[str]:
    """Return the lines of a table: each layer with a weight or settings, and its entry.

    Args:
        settings: a checked configuration.
        target: ``"module:factory"``; the factory takes no arguments and returns the model. The
            module is looked for in the current folder, too.

    Raises:
        EngineError: there is no such module or factory, or it fails or returns no model.
        ConfigError: the configuration does not fit the model.
    """
    model = build(target)
    from engine.attach.create import create_compressor

    compressor = create_compressor(model, settings.document)
    chosen = {wrapper.name: wrapper for wrapper in compressor.get_modules_wrapper()}
    entries = [_settings(entry) for entry in settings.entries]
    rows = []
    for name, module in model.named_modules():
        weight = module._parameters.get("weight")
        wrapper = chosen.get(name)
        if weight is None and wrapper is None:
            continue
        gets = _settings(wrapper.config) if wrapper is not None else None
        rows.append(
            (
                name or "(model)",
                type(module).__name__,
                "" if weight is None else "x".join(map(str, weight.shape)),
                "-" if gets is None else str(_place(gets, entries)),
                "-" if gets is None else ", ".join(f"{k} {v}" for k, v in gets.items()),
            )
        )
    return [f"{len(chosen)} of {len(rows)} layers:", table(_HEADER, rows, _LIMITS)]


def _settings(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: item for key, item in entry.items() if key not in _SELECTION}


def _place(gets: dict[str, Any], entries: list[dict[str, Any]]) -> int:
    """Return the number of the last entry with these settings."""
    return max((i for i, entry in enumerate(entries) if entry == gets), default=-1)
