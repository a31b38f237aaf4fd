"""Whose fault an error is: which plugin, of which distribution, in which hook, for which layer."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Generator
from typing import Any

import torch

from engine.errors import EngineError, PluginError
from engine.plugins import registry
from engine.plugins.parameters import fault_in
from engine.plugins.registry import OWN_DISTRIBUTION

#: Errors that are nobody's fault, or say whose they are: they pass as they are.
PASSING = (EngineError, MemoryError, torch.OutOfMemoryError)


def describe(plugin: object) -> str:
    """Return how messages name a plugin."""
    return getattr(plugin, "plugin_name", None) or type(plugin).__name__


def name_of(plugin: object) -> str:
    """Return the name that a plugin is found by, or its class's name."""
    found = registry.find_class(type(plugin))
    return describe(plugin) if found is None else found.name


def origin_of(plugin: object) -> str | None:
    """Return the distribution and version that a plugin's class is installed from, if any."""
    found = registry.find_class(type(plugin))
    return None if found is None else found.origin


def named(plugin: object, more: str = "") -> str:
    """Return how a message names a plugin whose fault something is: with its distribution."""
    origin = origin_of(plugin)
    return f"{name_of(plugin)}{more}{f' ({origin})' if origin else ''}"


def at_fault(
    plugin: object, text: str, *, more: str = "", hook: str | None = None, layer: str | None = None
) -> PluginError:
    """Return an error of which ``plugin`` is to blame.

    Args:
        plugin: the object; its name and distribution stand before ``text``.
        text: what it does wrong, and below that what it must do.
        more: what follows its name directly, such as ``.calc_mask``.
        hook: the hook that this is about, if any.
        layer: the name of the layer, likewise.
    """
    return PluginError(
        f"{named(plugin, more)} {text}",
        plugin=name_of(plugin),
        distribution=origin_of(plugin),
        hook=hook,
        layer=layer,
    )


def failure(plugin: object, hook: str, layer: Any, error: BaseException) -> EngineError:
    """Return the error that says who failed; ``error`` is its cause.

    It is no plugin's fault where a parameter was sharded or taken away after ``compress()``.

    Args:
        plugin: the object whose hook it was.
        hook: the hook's name.
        layer: the wrapper that the hook was called for, or None.
        error: what was raised.
    """
    for known in getattr(plugin, "wrappers", ()) if layer is None else (layer,):
        if fault := fault_in(known):
            return EngineError(f"{describe(plugin)}: {fault}")
    where = f' for layer "{layer.name}" ({layer.type})' if layer is not None else ""
    lines = [f"{named(plugin)} failed in {hook}{where}: {type(error).__name__}: {error}"]
    frames = traceback.extract_tb(error.__traceback__)
    own = getattr(sys.modules.get(type(plugin).__module__), "__file__", None)
    place = next((f for f in reversed(frames) if f.filename == own), frames[-1] if frames else None)
    if place is not None:
        lines.append(f"  at {place.filename}, line {place.lineno}")
    found = registry.find_class(type(plugin))
    if found is not None and not found.comes_from(OWN_DISTRIBUTION):
        lines.append(f"  tell the authors of {found.distribution}; engine check {found.name}")
    return PluginError(
        "\n".join(lines),
        plugin=name_of(plugin),
        distribution=origin_of(plugin),
        hook=hook,
        layer=None if layer is None else layer.name,
    )


class Blaming:
    """Calls one plugin's implementation of a hook; what it raises becomes a PluginError.

    Args:
        call: the implementation; takes the specification's arguments by position.
        plugin: whose it is.
        hook: the hook's name.
        names: the names of the arguments.
        verify: looks at a result that is not None, and raises where it is none.
        failed: where failures are collected instead of raised, for observers: each of them is told.
    """

    def __init__(
        self,
        call: Callable[..., Any],
        plugin: object,
        hook: str,
        names: tuple[str, ...],
        verify: Verify | None = None,
        failed: list[Exception] | None = None,
    ) -> None:
        self._call = call
        self._plugin = plugin
        self._hook = hook
        self._layer = names.index("wrapper") if "wrapper" in names else None
        self._verify = verify
        self._failed = failed

    def __call__(self, *args: Any) -> Any:
        """Call the implementation."""
        try:
            result = self._call(*args)
        except PASSING as error:
            return self._raise(error)
        except Exception as error:
            fault = self.failure(args, error)
            fault.__cause__ = error
            return self._raise(fault)
        if self._verify is not None and result is not None:
            self._verify(result, self._plugin, *args)
        return result

    def around(self, *args: Any) -> Generator[None, Any, Any]:
        """Run an implementation that is a wrapper; what is raised within it passes."""
        try:
            result = yield from self._call(*args)
        except PASSING:
            raise
        except Exception as error:
            raise self.failure(args, error) from error
        if self._verify is not None and result is not None:
            self._verify(result, self._plugin, *args)
        return result

    def failure(self, args: tuple[Any, ...], error: BaseException) -> EngineError:
        """Return the error for ``error``, raised by a call with ``args``."""
        layer = None if self._layer is None else args[self._layer]
        return failure(self._plugin, self._hook, layer, error)

    def _raise(self, error: Exception) -> None:
        if self._failed is None:
            raise error
        self._failed.append(error)


#: Looks at a hook's result: ``verify(result, plugin, *arguments)``.
Verify = Callable[..., object]
