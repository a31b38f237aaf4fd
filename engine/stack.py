"""The plugins of one compressor, in order: one provider per hook, any number of wrappers.

A stack is a pluggy plugin manager of its own. It is checked when it is built, and the hooks that
run in every forward pass are resolved once: a lone provider is called directly, which costs a
method call and keeps ``torch.compile(fullgraph=True)`` possible.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import pluggy

from engine.errors import PluginError, nearest
from engine.hookspecs import PROJECT, HookSpecs, hookimpl

#: Hook name -> the names of its arguments, in order.
HOOKS: dict[str, tuple[str, ...]] = {
    name: tuple(inspect.signature(spec).parameters)[1:]
    for name, spec in vars(HookSpecs).items()
    if hasattr(spec, f"{PROJECT}_spec")
}
FIRST_RESULT = frozenset(
    name for name in HOOKS if getattr(HookSpecs, name).engine_spec["firstresult"]
)


class Stack:
    """Plugins registered together, outermost wrapper last.

    Args:
        plugins: algorithm instances and extensions. Wrappers that come later enclose earlier ones.

    Raises:
        PluginError: two providers for one hook, a misspelt hook or argument.
    """

    def __init__(self, plugins: Sequence[object]) -> None:
        self.plugins = tuple(plugins)
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(HookSpecs)
        self._providers: dict[str, object] = {}
        self._direct: dict[str, list[tuple[object, Callable[..., Any]]]] = {n: [] for n in HOOKS}
        self._wrapped: set[str] = set()
        for plugin in self.plugins:
            self._register(plugin)

    def provider(self, hook: str) -> object | None:
        """Return the plugin that answers ``hook``, or None."""
        return self._providers.get(hook)

    def provided(self, hook: str) -> Callable[..., Any] | None:
        """Return the provider's own implementation of ``hook``, without wrappers around it.

        It takes the specification's arguments by position, in order.
        """
        provider = self._providers.get(hook)
        return next((call for plugin, call in self._direct[hook] if plugin is provider), None)

    def has(self, hook: str) -> bool:
        """Return whether any plugin implements or wraps ``hook``."""
        return bool(self._direct[hook]) or hook in self._wrapped

    def resolve(self, hook: str) -> Callable[..., Any] | None:
        """Return the cheapest callable for ``hook``, or None when nobody implements it.

        It takes the specification's arguments by position, in order. A lone implementation that
        takes all of them in that order is returned itself.
        """
        implementations = self._direct[hook]
        if hook in self._wrapped or len(implementations) > 1:
            return _ThroughPluggy(getattr(self._manager.hook, hook), hook, implementations)
        return implementations[0][1] if implementations else None

    def _register(self, plugin: object) -> None:
        if isinstance(plugin, type):
            raise _no_extension(plugin.__name__, "is a class, not an instance")
        namespace = _Implementations()
        misspelt = [
            name
            for name in dir(type(plugin))
            if name.removeprefix("_on_") not in HOOKS
            and hasattr(inspect.getattr_static(plugin, name), "engine_impl")
        ]
        for name in misspelt:
            suggestion = nearest(name, HOOKS)
            raise PluginError(
                f"{describe(plugin)} implements an unknown hook {name!r}\n"
                f"  hooks are: {', '.join(HOOKS)}"
                + (f"\n  did you mean {suggestion!r}?" if suggestion else ""),
                plugin=describe(plugin),
                hook=name,
            )
        if not hasattr(plugin, "hooks_by_name") and not any(
            implementation_of(plugin, hook) for hook in HOOKS
        ):
            raise _no_extension(describe(plugin), "has no hook")
        for hook, spec_args in HOOKS.items():
            method = implementation_of(plugin, hook)
            if method is None:
                continue
            options = getattr(method, f"{PROJECT}_impl", None)
            adapted = _adapt(plugin, hook, method, spec_args)
            if options and (options["wrapper"] or options["hookwrapper"]):
                self._wrapped.add(hook)
                setattr(namespace, hook, method)
                continue
            if hook in FIRST_RESULT:
                taken = self._providers.setdefault(hook, plugin)
                if taken is not plugin:
                    raise PluginError(
                        f"two plugins provide {hook}: {describe(taken)} and {describe(plugin)}\n"
                        "  a stack has one provider for each hook; a schedule or a constraint is "
                        "a wrapper, marked @hookimpl(wrapper=True)",
                        plugin=describe(plugin),
                        hook=hook,
                    )
            self._direct[hook].append((plugin, adapted))
            setattr(namespace, hook, hookimpl(**_options(options))(_as_specified(adapted, hook)))
        try:
            self._manager.register(namespace, name=f"{describe(plugin)} {id(plugin)}")
            self._manager.check_pending()
        except pluggy.PluginValidationError as error:
            raise PluginError(f"{describe(plugin)}: {error}", plugin=describe(plugin)) from error


class _Implementations:
    """What is registered with pluggy for one plugin: its implementations as attributes."""


def implementation_of(plugin: object, hook: str) -> Callable[..., Any] | None:
    """Return ``plugin``'s own implementation of ``hook``, or None.

    A method marked ``@hookimpl`` counts anywhere; an unmarked one counts when the plugin's class
    derives from one of the engine's bases, whose placeholders (``_is_placeholder``) do not.
    """
    # Compressor moves a subclass's update_epoch and step to these names.
    method: Any = getattr(plugin, f"_on_{hook}", None) or getattr(plugin, hook, None)
    if not callable(method) or getattr(method, "_is_placeholder", False):
        return None
    marked = hasattr(method, f"{PROJECT}_impl") or getattr(type(plugin), "hooks_by_name", False)
    implementation: Callable[..., Any] | None = method if marked else None
    return implementation


def placeholder(method: Callable[..., Any]) -> Callable[..., Any]:
    """Mark a base class's method as documentation of a hook, not an implementation of it."""
    method._is_placeholder = True  # type: ignore[attr-defined]
    return method


def describe(plugin: object) -> str:
    """Return how messages name a plugin."""
    return getattr(plugin, "plugin_name", None) or type(plugin).__name__


def _no_extension(name: str, fault: str) -> PluginError:
    return PluginError(
        f"the extension {name} {fault}\n"
        "  an extension is an object with methods marked @engine.hookimpl",
        plugin=name,
    )


def _options(options: dict[str, Any] | None) -> dict[str, Any]:
    kept = ("tryfirst", "trylast")
    return {key: options[key] for key in kept} if options else {}


def _adapt(
    plugin: object, hook: str, method: Callable[..., Any], spec_args: tuple[str, ...]
) -> Callable[..., Any]:
    """Return ``method`` taking all of the specification's arguments by position.

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
        raise PluginError(
            f"{describe(plugin)}.{hook} takes an argument {unknown[0]!r} that the hook does not "
            f"have\n  {hook} has: {', '.join(spec_args) or 'no arguments'}"
            + (f"\n  did you mean {suggestion!r}?" if suggestion else ""),
            plugin=describe(plugin),
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


class _ThroughPluggy:
    """Calls a hook that has wrappers or several observers.

    It may live in a module (a forward-time hook). A plugin manager cannot be pickled: a pickled
    model keeps the provider and loses the wrappers around it.
    """

    def __init__(
        self,
        caller: Callable[..., Any],
        hook: str,
        implementations: list[tuple[object, Callable[..., Any]]],
    ) -> None:
        self._caller = caller
        self._names = HOOKS[hook]
        self._implementations = implementations

    def __call__(self, *args: Any) -> Any:
        return self._caller(**dict(zip(self._names, args, strict=True)))

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (self._implementations[0][1], "__call__")


def _as_specified(call: Callable[..., Any], hook: str) -> Callable[..., Any]:
    """Return ``call`` in a form that pluggy reads as taking all of the hook's arguments."""

    def implementation(*args: Any) -> Any:
        return call(*args)

    implementation.__wrapped__ = getattr(HookSpecs(), hook)  # type: ignore[attr-defined]
    return implementation
