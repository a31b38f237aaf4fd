"""Plugins made for a test: a folder on sys.path with metadata, modules and schemas."""

import json
import sys
from pathlib import Path

import pytest

from engine.plugins import registry

SCHEMA = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "A test's pruner",
    "x-engine": {"kind": "pruning", "api": "1.0", "summary": "Made for a test"},
    "type": "object",
    "properties": {
        "config_list": {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/entry"}}
    },
    "required": ["config_list"],
    "additionalProperties": False,
    "$defs": {
        "entry": {
            "type": "object",
            "properties": {"sparsity": {"$ref": "engine:config#/$defs/sparsity"}},
            "required": ["sparsity"],
            "additionalProperties": False,
        }
    },
}


def with_facts(**facts):
    """Return SCHEMA with other facts under x-engine; None takes a fact away."""
    merged = {**SCHEMA["x-engine"], **facts}
    return {**SCHEMA, "x-engine": {key: item for key, item in merged.items() if item is not None}}


class Site:
    """A folder that stands first on sys.path."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def distribution(self, name, version="1.0", folder=None, suffix="dist-info", **groups):
        """Add a distribution's metadata; ``algorithms`` and ``extensions`` are its entries."""
        stem = name.replace("-", "_") + (f"-{version}" if suffix == "dist-info" else "")
        info = (folder or self.folder) / f"{stem}.{suffix}"
        info.mkdir(parents=True)
        headers = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n\nName: not this\n"
        (info / ("METADATA" if suffix == "dist-info" else "PKG-INFO")).write_text(headers)
        lines = []
        for group, entries in groups.items():
            lines += [f"[engine.{group}]", *(f"{key} = {value}" for key, value in entries), ""]
        (info / "entry_points.txt").write_text("\n".join(lines))
        registry.refresh()

    def package(self, name, code="class Pruner: pass\n", schema=SCHEMA, folder=None):
        """Add a package; ``schema`` may be text, data, or None for no file."""
        path = (folder or self.folder).joinpath(*name.split("."))
        path.mkdir(parents=True, exist_ok=True)
        (path / "__init__.py").write_text(code)
        if schema is not None:
            text = schema if isinstance(schema, str) else json.dumps(schema)
            (path / "schema.json").write_text(text)

    def plugin(self, name, distribution, version="1.0", *, group="algorithms", **package):
        """Add a distribution with one plugin in a package of its own."""
        module = distribution.replace("-", "_")
        self.distribution(distribution, version, **{group: [(name, f"{module}:Pruner")]})
        self.package(module, **package)


def row(name, distribution=None):
    """Return status and reason of the one algorithm of this name, or of this distribution's."""
    found = [p for p in registry.algorithms() if p.name == name]
    if distribution is not None:
        found = [p for p in found if p.distribution == distribution]
    (plugin,) = found
    return plugin.status, plugin.reason


@pytest.fixture
def site(tmp_path, monkeypatch):
    """An empty Site; what is imported from it is forgotten afterwards."""
    before = set(sys.modules)
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delenv("ENGINE_PREFER", raising=False)
    monkeypatch.delenv("ENGINE_BLOCK", raising=False)
    registry.refresh()
    yield Site(folder)
    for name in set(sys.modules) - before:
        if str(folder) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]
    registry.refresh()
