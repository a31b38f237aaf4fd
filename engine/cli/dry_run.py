"""Which layer of a model gets what: ``engine validate FILE --model module:factory``."""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

from engine.cli.table import table
from engine.config import Settings
from engine.errors import EngineError, nearest

if TYPE_CHECKING:
    from torch import nn

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
    from engine.create import create_compressor

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


def build(target: str) -> nn.Module:
    """Return the model that ``module:factory`` makes; see :func:`layers`."""
    module_name, colon, factory_name = target.partition(":")
    if not (module_name and colon and factory_name):
        raise EngineError(f'--model needs module:factory, such as my_net:build, got "{target}"')
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        # Whatever the user's module raises while it is imported.
        raise EngineError(
            f'--model: the module "{module_name}" cannot be imported: '
            f"{type(error).__name__}: {error}"
        ) from error
    factory = getattr(module, factory_name, None)
    if not callable(factory):
        near = nearest(factory_name, vars(module))
        hint = f'\n  did you mean "{near}"?' if near else ""
        raise EngineError(f'--model: {module_name} has no function "{factory_name}"{hint}')
    try:
        model = factory()
    except (Exception, SystemExit) as error:
        raise EngineError(f"--model: {target} failed: {type(error).__name__}: {error}") from error
    from torch import nn

    if not isinstance(model, nn.Module):
        raise EngineError(
            f"--model: {target} returned a {type(model).__name__}, an nn.Module is needed"
        )
    return model


def _settings(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: item for key, item in entry.items() if key not in _SELECTION}


def _place(gets: dict[str, Any], entries: list[dict[str, Any]]) -> int:
    """Return the number of the last entry with these settings."""
    return max((i for i, entry in enumerate(entries) if entry == gets), default=-1)
