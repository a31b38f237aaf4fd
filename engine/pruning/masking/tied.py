"""Layers that share one weight: the first of them owns its mask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from engine.attach.parametrized import source_of
from engine.attach.wrapper import Wrapper
from engine.errors import ConfigError, Problem

_SELECTION = ("op_types", "op_names", "exclude")


def tied_layers(wrappers: Sequence[Wrapper], source: str) -> dict[int, Wrapper]:
    """Return, by the id of each wrapper whose weight another one owns, that owner.

    Args:
        wrappers: the layers, in the model's order.
        source: what the message calls the configuration.

    Raises:
        ConfigError: layers with one weight are configured differently.
    """
    owners: dict[int, Wrapper] = {}
    tied: dict[int, Wrapper] = {}
    problems = []
    for wrapper in wrappers:
        owner = owners.setdefault(id(source_of(wrapper.module)), wrapper)
        if owner is wrapper:
            continue
        tied[id(wrapper)] = owner
        if _settings(owner.config) != _settings(wrapper.config):
            message = f'"{wrapper.name}" and "{owner.name}" share one weight but are configured'
            fix = "give both the same settings, or exclude one"
            problems.append(Problem(f"{message} differently", "/config_list", allowed=fix))
    if problems:
        raise ConfigError(problems, source)
    return tied


def _settings(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key not in _SELECTION}
