"""Every plugin of the engine's own distribution keeps every promise; nobody writes a list."""

from __future__ import annotations

import pytest

from engine.plugins import registry
from engine.plugins.registry import OWN_DISTRIBUTION, Plugin
from engine.testing.conformance import report
from engine.testing.outcome import Check, run
from engine.testing.subject import Subject
from engine.testing.suite import checks_for

#: What takes a second or more of each plugin; these stand for the others where it is to be fast.
DEAR = {
    "it_compiles_as_one_graph",
    "it_composes_with_pruners",
    "it_composes_with_quantizers",
    "it_trains_in_distributed_data_parallel",
    "it_works_with_every_algorithm",
    "onnx_gives_the_same_outputs",
}
STAND_FOR_ALL = {"level", "qat", "gptq", "n_m"}


def marks(plugin: Plugin, check: Check) -> list[pytest.MarkDecorator]:
    """Exporting graphs takes seconds each, and a dozen of them are tried."""
    writes = check.function.__module__ == "engine.testing.exporting"
    graph = plugin.expresses.get("example", False)
    dear = check.name in DEAR and plugin.name not in STAND_FOR_ALL
    return [pytest.mark.slow] if dear or (writes and graph) else []


PAIRS = [
    pytest.param(plugin, check, id=f"{plugin.name}-{check.name}", marks=marks(plugin, check))
    for plugin in [*registry.algorithms(), *registry.extensions(), *registry.exporters()]
    if plugin.comes_from(OWN_DISTRIBUTION)
    for check in checks_for(plugin)
]


@pytest.mark.parametrize(("plugin", "check"), PAIRS)
def test_every_built_in_plugin_passes_every_check(plugin: Plugin, check: Check) -> None:
    report(run(check, Subject(plugin)))
