"""Between a plugin's method and its hook: arguments that it takes, and calls through pluggy."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from engine.errors import nearest
from engine.plugins.blame import at_fault


def adapt(
    plugin: object, hook: str, method: Callable[..., Any], spec_args: tuple[str, ...]
) -> Callable[..., Any]:
    """Return ``method`` taking all of the specification's arguments by position.

    Raises PluginError where it takes one that the hook does not have.

    pluggy does not pass arguments that have defaults, yet ``calc_mask(self, wrapper,
    wrapper_idx=None)`` is how algorithms have been written for years: here they are passed.
    """
    parameters = inspect.signature(method).parameters
    kinds = {parameter.kind for parameter in parameters.values()}
    names = [
        name
        for name, parameter in parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    ]
    unknown = [name for name in names if name not in spec_args]
    if unknown:
        suggestion = nearest(unknown[0], spec_args)
        raise at_fault(
            plugin,
            f"takes an argument {unknown[0]!r} that the hook does not have\n"
            f"  {hook} has: {', '.join(spec_args) or 'no arguments'}"
            + (f"\n  did you mean {suggestion!r}?" if suggestion else ""),
            more=f".{hook}",
            hook=hook,
        )
    if tuple(names) == spec_args and inspect.Parameter.KEYWORD_ONLY not in kinds:
        return method
    if inspect.Parameter.VAR_KEYWORD in kinds:
        names = list(spec_args)
    return _Subset(method, {name: spec_args.index(name) for name in names})


class _Subset:
    """Calls a method with those of the hook's arguments that it takes; can be pickled."""

    def __init__(self, method: Callable[..., Any], indices: dict[str, int]) -> None:
        self._method = method
        self._indices = indices

    def __call__(self, *args: Any) -> Any:
        return self._method(**{name: args[index] for name, index in self._indices.items()})


class ThroughPluggy:
    """Calls a hook that has wrappers or several observers.

    All observers are told; then the first failure among them, collected in ``failed``, is raised.

    It may live in a module (a forward-time hook). A plugin manager cannot be pickled: a pickled
    model keeps the provider and loses the wrappers around it.
    """

    def __init__(
        self,
        caller: Callable[..., Any],
        names: tuple[str, ...],
        implementations: list[tuple[object, Callable[..., Any]]],
        failed: list[Exception],
    ) -> None:
        self._failed = failed
        self._caller = caller
        self._names = names
        self._implementations = implementations

    def __call__(self, *args: Any) -> Any:
        """Call the hook."""
        self._failed.clear()
        result = self._caller(**dict(zip(self._names, args, strict=True)))
        if self._failed:
            raise self._failed[0]
        return result

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (self._implementations[0][1], "__call__")


def as_specified(call: Callable[..., Any], spec: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``call`` in a form that pluggy reads as taking all of the hook's arguments."""

    def implementation(*args: Any) -> Any:
        return call(*args)

    implementation.__wrapped__ = spec  # type: ignore[attr-defined]
    return implementation


def as_specified_wrapper(
    around: Callable[..., Any], spec: Callable[..., Any]
) -> Callable[..., Any]:
    """Return a wrapper in a form that pluggy reads as taking all of the hook's arguments."""

    def implementation(*args: Any) -> Any:
        return (yield from around(*args))

    implementation.__wrapped__ = spec  # type: ignore[attr-defined]
    return implementation
