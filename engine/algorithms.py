"""Every installed algorithm by its class name: ``from engine.algorithms import LevelPruner``.

Classes are found by entry point and imported when they are first asked for. An unknown name raises
PluginError with the nearest one; Python would hide that message behind an AttributeError's.
"""

from __future__ import annotations

from typing import Any

from engine.plugins import registry


def __getattr__(name: str) -> Any:
    if name.startswith("_"):
        raise AttributeError(f"module 'engine.algorithms' has no attribute {name!r}")
    return registry.find(name).load()


def __dir__() -> list[str]:
    return sorted(plugin.attribute for plugin in registry.algorithms() if plugin.status == "ok")
