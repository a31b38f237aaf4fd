"""The plugins of one compressor, in order: one provider per hook, any number of wrappers.

A stack is a pluggy plugin manager of its own. It is checked when it is built, and the hooks that
run in every forward pass are resolved once: a lone provider is called directly, which costs a
method call and keeps ``torch.compile(fullgraph=True)`` possible.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pluggy

from engine.errors import PluginError, nearest
from engine.hookspecs import PROJECT, HookSpecs, hookimpl
from engine.plugins.blame import Blaming, Verify, at_fault, named
from engine.plugins.blame import describe as describe
from engine.plugins.hook_calls import ThroughPluggy, adapt, as_specified, as_specified_wrapper

#: Hook name -> the names of its arguments, in order.
HOOKS: dict[str, tuple[str, ...]] = {
    name: tuple(inspect.signature(spec).parameters)[1:]
    for name, spec in vars(HookSpecs).items()
    if hasattr(spec, f"{PROJECT}_spec")
}
#: Hooks of every forward and backward: a lone implementation is called as it is.
_HOT = frozenset(("quantize_weight", "quantize_input", "quantize_output", "quant_backward"))
FIRST_RESULT = frozenset(
    name for name in HOOKS if getattr(HookSpecs, name).engine_spec["firstresult"]
)


class Stack:
    """Plugins registered together, outermost wrapper last.

    What a plugin raises in a hook becomes a PluginError that names it, except in the hooks of every
    forward, whose caller does that. Every observer is told, also where another one fails.

    Args:
        plugins: algorithm instances and extensions. Wrappers that come later enclose earlier ones.
        verify: by hook, what looks at the result of each plugin where several have a say in it.

    Raises:
        PluginError: two providers for one hook, a misspelt hook or argument, a plugin given twice.
    """

    def __init__(
        self, plugins: Sequence[object], verify: Mapping[str, Verify] | None = None
    ) -> None:
        self.plugins = tuple(plugins)
        self._verify = verify or {}
        #: What observers raised in the call that is going on.
        self._failed: dict[str, list[Exception]] = {hook: [] for hook in HOOKS}
        for place, plugin in enumerate(self.plugins):
            if any(plugin is other for other in self.plugins[:place]):
                raise at_fault(
                    plugin,
                    "is given twice\n"
                    "  an extension stands in a stack once; make another instance for another use",
                )
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
            caller = getattr(self._manager.hook, hook)
            return ThroughPluggy(caller, HOOKS[hook], implementations, self._failed[hook])
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
            raise at_fault(
                plugin,
                f"implements an unknown hook {name!r}\n  hooks are: {', '.join(HOOKS)}"
                + (f"\n  did you mean {suggestion!r}?" if suggestion else ""),
                hook=name,
            )
        if not hasattr(plugin, "hooks_by_name") and not any(
            implementation_of(plugin, hook) for hook in HOOKS
        ):
            raise _no_extension(describe(plugin), "has no hook")
        for hook, spec_args in HOOKS.items():
            spec = getattr(HookSpecs(), hook)
            method = implementation_of(plugin, hook)
            if method is None:
                continue
            options = getattr(method, f"{PROJECT}_impl", None)
            adapted = adapt(plugin, hook, method, spec_args)
            verify = self._verify.get(hook)
            if options and (options["wrapper"] or options["hookwrapper"]):
                self._wrapped.add(hook)
                around = method
                if inspect.isgeneratorfunction(method):  # else pluggy says that it must be one
                    blaming = Blaming(adapted, plugin, hook, spec_args, verify)
                    around = hookimpl(**options)(as_specified_wrapper(blaming.around, spec))
                setattr(namespace, hook, around)
                continue
            if hook in FIRST_RESULT:
                taken = self._providers.setdefault(hook, plugin)
                if taken is not plugin:
                    raise PluginError(
                        f"two plugins provide {hook}: {named(taken)} and {named(plugin)}\n"
                        "  a stack has one provider for each hook; a schedule or a constraint is "
                        "a wrapper, marked @hookimpl(wrapper=True)",
                        plugin=describe(plugin),
                        hook=hook,
                    )
            plain = adapted if hook in _HOT else Blaming(adapted, plugin, hook, spec_args)
            self._direct[hook].append((plugin, plain))
            failed = None if hook in FIRST_RESULT else self._failed[hook]
            blaming = Blaming(adapted, plugin, hook, spec_args, verify, failed)
            setattr(namespace, hook, hookimpl(**_options(options))(as_specified(blaming, spec)))
        try:
            self._manager.register(namespace, name=f"{describe(plugin)} {id(plugin)}")
            self._manager.check_pending()
        except pluggy.PluginValidationError as error:
            raise at_fault(plugin, str(error), more=":") from error


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


def _no_extension(name: str, fault: str) -> PluginError:
    return PluginError(
        f"the extension {name} {fault}\n"
        "  an extension is an object with methods marked @engine.hookimpl",
        plugin=name,
    )


def _options(options: dict[str, Any] | None) -> dict[str, Any]:
    kept = ("tryfirst", "trylast")
    return {key: options[key] for key in kept} if options else {}
