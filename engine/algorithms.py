"""Every installed algorithm by its class name: ``from engine.algorithms import LevelPruner``.

Classes are found by entry point and imported when they are first asked for.
"""

from __future__ import annotations

from typing import Any

from engine import registry


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    try:
        return registry.find(name).load()
    except registry.UnknownPlugin as error:
        # An import statement expects ImportError, which AttributeError becomes.
        raise AttributeError(str(error)) from error


def __dir__() -> list[str]:
    return sorted(plugin.attribute for plugin in registry.algorithms() if plugin.status == "ok")
