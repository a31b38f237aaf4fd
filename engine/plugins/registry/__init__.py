"""Finds the installed plugins; imports one only when it is used.

Plugins are entry points of the groups ``engine.algorithms``, ``engine.extensions`` and
``engine.exporters``. Listing them reads metadata and schemas only: no plugin, and neither torch,
pluggy nor jsonschema, is imported. A plugin that is broken or incompatible is listed with the
reason and harms nothing else.

When two distributions offer one name, the engine's own wins; between two others, neither is found
by its bare name, and both can be used as ``"distribution:name"``. Two environment variables, read
at each look-up, change that; what they name need not exist:

- ``ENGINE_PREFER="name=distribution,..."`` picks whose ``name`` it is.
- ``ENGINE_BLOCK="name,distribution,distribution:name,..."`` keeps plugins from being used.
"""

from __future__ import annotations

import os
import sys

from engine.errors import PluginError
from engine.plugins.registry.catalog import Catalog, Refusal, UnknownPlugin, settings
from engine.plugins.registry.plugin import STATUSES, Plugin
from engine.plugins.registry.scan import (
    ALGORITHMS,
    EXPORTERS,
    EXTENSIONS,
    OWN_DISTRIBUTION,
    Entry,
    scan,
)

__all__ = [
    "ALGORITHMS",
    "EXPORTERS",
    "EXTENSIONS",
    "OWN_DISTRIBUTION",
    "STATUSES",
    "Plugin",
    "Refusal",
    "UnknownPlugin",
    "algorithms",
    "exporters",
    "extensions",
    "find",
    "find_class",
    "in_group",
    "refresh",
    "resolve",
]

_scans: dict[tuple[str, ...], list[Entry]] = {}
_catalogs: dict[tuple[str, ...], Catalog] = {}


def _catalog() -> Catalog:
    """Return the catalog for today's ``sys.path`` and environment; each is scanned once."""
    paths = (_current_folder() if "" in sys.path else "", *sys.path)
    key = (*settings(os.environ), *paths)
    if key not in _catalogs:
        if paths not in _scans:
            _scans[paths] = scan(sys.path)
        _catalogs[key] = Catalog(_scans[paths], *settings(os.environ))
    return _catalogs[key]


def _current_folder() -> str:
    try:
        return os.getcwd()
    except OSError:  # somebody has removed it
        return ""


def refresh() -> None:
    """Forget what was found: for a process that installs plugins while it runs."""
    import importlib

    _scans.clear()
    _catalogs.clear()
    importlib.invalidate_caches()


def in_group(group: str) -> list[Plugin]:
    """Return every plugin of an entry-point group, sorted by name, usable or not."""
    return _catalog().group(group)


def algorithms() -> list[Plugin]:
    """Return every algorithm that is installed, sorted by name, usable or not."""
    return in_group(ALGORITHMS)


def extensions() -> list[Plugin]:
    """Return every extension that is installed, sorted by name, usable or not."""
    return in_group(EXTENSIONS)


def exporters() -> list[Plugin]:
    """Return every exporter that is installed, sorted by name, usable or not."""
    return in_group(EXPORTERS)


def resolve(name: str, group: str = ALGORITHMS) -> Plugin | Refusal:
    """Return what ``find`` returns, or the reason as a value instead of an error."""
    return _catalog().resolve(name, group)


def find(name: str, group: str = ALGORITHMS) -> Plugin:
    """Return the usable plugin that is called ``name``.

    ``name`` is an entry's name (``level``), ``distribution:name``, the name of a plugin's class
    (``LevelPruner``), or an alias that a plugin's schema declares.

    Raises:
        UnknownPlugin: no plugin has the name; a PluginError with the nearest name.
        PluginError: several have it, or it is broken, incompatible or blocked (with the reason and
            what to do).
    """
    found = resolve(name, group)
    if isinstance(found, Plugin):
        return found
    if found.plugin is None:
        raise UnknownPlugin(str(found), plugin=name)
    raise PluginError(str(found), plugin=found.plugin.name, distribution=found.plugin.origin)


def find_class(cls: type) -> Plugin | None:
    """Return the plugin whose entry point is ``cls``, or None for a class that is none."""
    value = f"{cls.__module__}:{cls.__qualname__}"
    plugins = _catalog().plugins
    for plugin in plugins:
        if plugin.value == value:
            return plugin
    for plugin in plugins:
        # The entry point may name a package that re-exports the class from a module within.
        if plugin.attribute == cls.__qualname__:
            module = sys.modules.get(plugin.module)
            if module is not None and getattr(module, plugin.attribute, None) is cls:
                return plugin
    return None
