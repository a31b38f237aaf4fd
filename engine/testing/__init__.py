"""What a plugin's author runs to know that the plugin is right: ``engine check NAME``, or pytest.

Names are loaded when they are first used: pytest itself is needed for the test classes only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.testing.conformance import (
        ExporterConformance,
        ExtensionConformance,
        PrunerConformance,
        QuantizerConformance,
        ScheduleConformance,
        SearchConformance,
    )
    from engine.testing.outcome import Check, Result
    from engine.testing.suite import CHECKS, check_plugin

_HOME = {
    "CHECKS": "engine.testing.suite",
    "BlocksConformance": "engine.testing.conformance",
    "Check": "engine.testing.outcome",
    "ExporterConformance": "engine.testing.conformance",
    "ExtensionConformance": "engine.testing.conformance",
    "PrunerConformance": "engine.testing.conformance",
    "QuantizerConformance": "engine.testing.conformance",
    "Result": "engine.testing.outcome",
    "ScheduleConformance": "engine.testing.conformance",
    "SearchConformance": "engine.testing.conformance",
    "check_plugin": "engine.testing.suite",
}

__all__ = [
    "CHECKS",
    "BlocksConformance",
    "Check",
    "ExporterConformance",
    "ExtensionConformance",
    "PrunerConformance",
    "QuantizerConformance",
    "Result",
    "ScheduleConformance",
    "SearchConformance",
    "check_plugin",
]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'engine.testing' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(home), name)
