"""Plugins as names of a module, loaded when they are asked for: ``engine.algorithms``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from engine.errors import PluginError
from engine.plugins import registry


class UnknownNameError(registry.UnknownPlugin, AttributeError):
    """No installed plugin has this name, asked for as an attribute: ``hasattr`` is False."""


class NoSuchImportError(registry.UnknownPlugin, ImportError):
    """No installed plugin has this name, asked for by ``from ... import``."""


def of(group: str, module: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return ``__getattr__`` and ``__dir__`` of a module that offers the plugins of a group.

    Args:
        group: the entry-point group.
        module: the module's name, for messages.
    """

    def load(name: str) -> Any:
        if name == "__all__":
            return loadable()
        if name.startswith("_"):
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        try:
            return registry.find(name, group).load()
        except registry.UnknownPlugin as error:
            # An AttributeError within an import becomes "cannot import name", without the hint.
            cls = NoSuchImportError if _imports(sys._getframe(1)) else UnknownNameError
            raise cls(*error.args, plugin=name) from None

    def listed() -> list[str]:
        plugins = registry.in_group(group)
        return sorted(plugin.attribute for plugin in plugins if plugin.status == "ok")

    def loadable() -> list[str]:
        """Return what ``import *`` brings: a plugin that fails to import harms no other."""
        found = []
        for name in listed():
            try:
                registry.find(name, group).load()
            except PluginError:
                continue
            found.append(name)
        return found

    return load, listed


def _imports(frame: FrameType) -> bool:
    """Return whether a frame is about to run ``from ... import``."""
    import dis

    code = frame.f_code.co_code
    return dis.opname[code[frame.f_lasti]] == "IMPORT_FROM" if frame.f_lasti >= 0 else False
