"""The strangers that docs/benchmarks/startup.py installs are what it says they are."""

import collections
import importlib.util
from pathlib import Path

from engine.plugins import registry

SCRIPT = Path(__file__).resolve().parents[2] / "docs" / "benchmarks" / "startup.py"


def test_two_hundred_plugins_are_listed_twenty_of_them_with_a_reason(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("startup", SCRIPT)
    startup = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(startup)
    startup.plugins(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    registry.refresh()
    try:
        found = [p for p in registry.algorithms() if p.name.startswith("stranger_")]
        counts = collections.Counter(plugin.status for plugin in found)
        reasons = [plugin.reason for plugin in found if plugin.status != "ok"]
    finally:
        monkeypatch.undo()
        registry.refresh()
    assert counts == {"ok": 180, "broken": 15, "incompatible": 5}
    assert all(reasons)
    assert len(set(reasons)) > 3
