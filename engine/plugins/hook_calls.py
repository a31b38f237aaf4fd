"""Between a plugin's method and its hook: arguments that it takes, and calls through pluggy."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from engine.errors import nearest
from engine.plugins.blame import at_fault

#: What NNI's manuals call arguments, by the argument here and what of it is meant; "" is all of it.
_OTHER_WORDS = {
    "config": ("wrapper", "config"),
    "layer": ("wrapper", ""),
    "layer_info": ("wrapper", ""),
    "weight": ("wrapper", "weight"),
}


def adapt(
    plugin: object, hook: str, method: Callable[..., Any], spec_args: tuple[str, ...]
) -> Callable[..., Any]:
    """Return ``method`` taking all of the specification's arguments by position.

    pluggy does not pass arguments that have defaults, yet ``calc_mask(self, wrapper,
    wrapper_idx=None)`` is how algorithms have been written for years: here they are passed. So are
    ``config``, ``layer`` and ``layer_info`` of NNI's manuals, and the only argument of a hook that
    has one, whatever it is called (``update_epoch(self, epoch_num)``).

    Raises:
        PluginError: it takes an argument that the hook does not have.
    """
    parameters = inspect.signature(method).parameters
    kinds = {parameter.kind for parameter in parameters.values()}
    names = [
        name
        for name, parameter in parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    ]
    if tuple(names) == spec_args and inspect.Parameter.KEYWORD_ONLY not in kinds:
        return method
    if len(spec_args) == 1 and len(names) == 1 and not kinds & _VARIABLE:
        return _Subset(method, {names[0]: (0, "")})
    sources = {name: _source(name, spec_args) for name in names}
    unknown = [name for name, source in sources.items() if source is None]
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
    taken = {name: source for name, source in sources.items() if source is not None}
    if inspect.Parameter.VAR_KEYWORD in kinds:
        taken = {name: (index, "") for index, name in enumerate(spec_args)} | taken
    return _Subset(method, taken)


_VARIABLE = {inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL}


def _source(name: str, spec_args: tuple[str, ...]) -> tuple[int, str] | None:
    """Return which of the hook's arguments an argument is, and what of it; None for none."""
    if name in spec_args:
        return spec_args.index(name), ""
    argument, part = _OTHER_WORDS.get(name, ("", ""))
    return (spec_args.index(argument), part) if argument in spec_args else None


class _Subset:
    """Calls a method with those of the hook's arguments that it takes; can be pickled."""

    def __init__(self, method: Callable[..., Any], sources: dict[str, tuple[int, str]]) -> None:
        self._method = method
        self._sources = sources

    def __call__(self, *args: Any) -> Any:
        return self._method(
            **{
                name: getattr(args[index], part) if part else args[index]
                for name, (index, part) in self._sources.items()
            }
        )


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
