"""All plugins together: whose name it is when two want one, and how a name is looked up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from engine.errors import PluginError, nearest
from engine.plugins.registry.plugin import Plugin
from engine.plugins.registry.scan import ALGORITHMS, OWN_DISTRIBUTION, WORDS, Entry, normalised


class Refusal(NamedTuple):
    """Why a name gives no plugin: the parts of the message, for whoever reports it."""

    message: str
    allowed: str | None = None
    suggestion: str | None = None
    plugin: Plugin | None = None

    def __str__(self) -> str:
        lines = [self.message]
        if self.allowed:
            lines.append(f"  {self.allowed}")
        if self.suggestion:
            lines.append(f'  did you mean "{self.suggestion}"?')
        return "\n".join(lines)


class UnknownPlugin(PluginError):  # noqa: N818
    """No installed plugin has this name."""


class Catalog:
    """The plugins of one scan, judged under one setting of ENGINE_PREFER and ENGINE_BLOCK."""

    def __init__(self, entries: Iterable[Entry], prefer: str = "", block: str = "") -> None:
        self.plugins: list[Plugin] = []
        self._twice: dict[tuple[str, str, str], list[str]] = {}
        for entry in entries:
            key = (entry.group, entry.distribution, entry.name)
            values = self._twice.setdefault(key, [])
            if not values:
                self.plugins.append(Plugin(entry, self._judge, self._extended))
            values.append(entry.value)
        self._wanting: dict[tuple[str, str], list[Plugin]] = {}
        for plugin in self.plugins:
            self._wanting.setdefault((plugin.group, plugin.name), []).append(plugin)
        pairs = (item.partition("=") for item in prefer.split(","))
        self._prefer = {name.strip(): normalised(dist.strip()) for name, _, dist in pairs if dist}
        self._block = {item.strip() for item in block.split(",") if item.strip()}

    def group(self, group: str) -> list[Plugin]:
        """Return the plugins of one entry-point group, sorted by name."""
        own = [plugin for plugin in self.plugins if plugin.group == group]
        return sorted(own, key=lambda plugin: (plugin.name, plugin.distribution))

    def _extended(self, plugin: Plugin, name: str) -> Plugin | None:
        """Return the plugin that ``plugin`` says its schema builds upon.

        ``distribution:name``, or a name of the plugin's own distribution or of the engine's: what
        else is installed makes no difference.
        """
        distribution, colon, short = name.rpartition(":")
        homes = [distribution] if colon else [plugin.distribution, OWN_DISTRIBUTION]
        for home in homes:
            for other in self._wanting.get((plugin.group, short), []):
                if other.comes_from(home) and other is not plugin:
                    return other
        # Its own name in its own distribution: a circle.
        return plugin if short == plugin.name and plugin.comes_from(homes[0]) else None

    def _blocked(self, plugin: Plugin) -> bool:
        for item in self._block:
            distribution, colon, name = item.partition(":")
            if colon:
                if name == plugin.name and plugin.comes_from(distribution):
                    return True
            elif item == plugin.name or plugin.comes_from(item):
                return True
        return False

    def _judge(self, plugin: Plugin) -> tuple[str, str]:
        if self._blocked(plugin):
            return "blocked", "listed in ENGINE_BLOCK"
        values = self._twice[plugin.group, plugin.distribution, plugin.name]
        if len(values) > 1:
            return "broken", f"{plugin.distribution} offers it twice: {', '.join(values)}"
        if plugin.fault is not None:
            return plugin.fault.status, plugin.fault.reason
        rivals = [
            other
            for other in self._wanting[plugin.group, plugin.name]
            if other is not plugin and not self._blocked(other)
        ]
        picked = self._prefer.get(plugin.name)
        if picked and any(normalised(each.distribution) == picked for each in [plugin, *rivals]):
            if normalised(plugin.distribution) == picked:
                return "ok", ""
            return "clash", f'ENGINE_PREFER picks {picked}; this one is "{plugin.qualified_name}"'
        if plugin.comes_from(OWN_DISTRIBUTION):
            return "ok", ""
        # A broken rival harms nobody, except that the engine's own names stay reserved.
        rivals = [r for r in rivals if r.comes_from(OWN_DISTRIBUTION) or r.fault is None]
        if not rivals:
            return "ok", ""
        others = ", ".join(rival.origin for rival in rivals)
        return "clash", f'also offered by {others}; this one is "{plugin.qualified_name}"'

    def resolve(self, name: str, group: str = ALGORITHMS) -> Plugin | Refusal:
        """Return the plugin that ``name`` means, or why there is none.

        ``name`` is an entry's name, ``distribution:name``, the name of a plugin's class, or an
        alias from a plugin's schema, looked up in this order.
        """
        plugins = self.group(group)
        distribution, colon, short = name.partition(":")
        if colon:
            own = [p for p in plugins if p.comes_from(distribution) and _is_called(p, short)]
            usable = [plugin for plugin in own if plugin.status in ("ok", "clash")]
            return usable[0] if usable else self._refuse(name, own, plugins, group)
        own = [plugin for plugin in plugins if plugin.name == name]
        own = own or [plugin for plugin in plugins if plugin.attribute == name]
        own = own or [plugin for plugin in plugins if name in plugin.aliases]
        usable = [plugin for plugin in own if plugin.status == "ok"]
        if len(usable) > 1:
            usable = [p for p in usable if p.comes_from(OWN_DISTRIBUTION)] or usable
        return usable[0] if len(usable) == 1 else self._refuse(name, own, plugins, group)

    def _refuse(self, name: str, own: list[Plugin], plugins: list[Plugin], group: str) -> Refusal:
        word = WORDS[group]
        if not own:
            names = [plugin.name for plugin in plugins if plugin.status == "ok"]
            known = dict.fromkeys(names, "")
            for plugin in plugins:
                known.update(dict.fromkeys((plugin.attribute, *plugin.aliases), plugin.name))
            return Refusal(
                f'unknown {word} "{name}"',
                f"installed: {', '.join(names) or 'none'}",
                nearest(name, names) or nearest(name, known),
            )
        waiting = [plugin for plugin in own if plugin.status in ("ok", "clash")]
        if len(waiting) > 1:
            origins = ", ".join(plugin.origin for plugin in waiting)
            choices = " or ".join(f'"{plugin.qualified_name}"' for plugin in waiting)
            pick = f'ENGINE_PREFER="{waiting[0].name}={waiting[0].distribution}"'
            return Refusal(
                f'"{name}" is offered by {len(waiting)} distributions: {origins}',
                f"use {choices}, or pick one with {pick}",
                plugin=waiting[0],
            )
        message, _, fix = str(own[0].unusable()).partition("\n")
        return Refusal(message, fix.strip() or None, plugin=own[0])


def _is_called(plugin: Plugin, name: str) -> bool:
    return name in (plugin.name, plugin.attribute) or name in plugin.aliases


def settings(environment: Mapping[str, str]) -> tuple[str, str]:
    """Return ENGINE_PREFER and ENGINE_BLOCK, empty where they are not set."""
    return environment.get("ENGINE_PREFER", ""), environment.get("ENGINE_BLOCK", "")
