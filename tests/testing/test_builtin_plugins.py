"""Every plugin of the engine's own distribution keeps every promise; nobody writes a list."""

from __future__ import annotations

import pytest

from engine.plugins import registry
from engine.plugins.registry import OWN_DISTRIBUTION, Plugin
from engine.testing.conformance import report
from engine.testing.outcome import Check, run
from engine.testing.subject import Subject
from engine.testing.suite import checks_for


def marks(plugin: Plugin, check: Check) -> list[pytest.MarkDecorator]:
    """Exporting graphs takes seconds each, and a dozen of them are tried."""
    writes = check.function.__module__ == "engine.testing.exporting"
    graph = plugin.expresses.get("example", False)
    return [pytest.mark.slow] if writes and graph else []


PAIRS = [
    pytest.param(plugin, check, id=f"{plugin.name}-{check.name}", marks=marks(plugin, check))
    for plugin in [*registry.algorithms(), *registry.extensions(), *registry.exporters()]
    if plugin.comes_from(OWN_DISTRIBUTION)
    for check in checks_for(plugin)
]


@pytest.mark.parametrize(("plugin", "check"), PAIRS)
def test_every_built_in_plugin_passes_every_check(plugin: Plugin, check: Check) -> None:
    report(run(check, Subject(plugin)))
