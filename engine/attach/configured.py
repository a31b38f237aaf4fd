"""One algorithm and its layers in one model: chosen and checked, nothing attached yet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

from torch import nn
from torch.optim import Optimizer

from engine import config
from engine.attach.selection import WEIGHTED_TYPES, Selected, select_layers
from engine.attach.unusable import refuse_flat, refuse_unusable
from engine.attach.wrapper import Wrapper
from engine.errors import ConfigError, Problem
from engine.plugins import registry
from engine.plugins.stack import describe


class Configured:
    """What a compressor is before it is attached: a configuration that holds for a model.

    Arguments are those of :class:`engine.Compressor`.

    Raises:
        ConfigError: the configuration is wrong by itself or for this model.
    """

    kind: ClassVar[str] = ""
    #: What ``default`` in ``op_types`` stands for.
    default_op_types: ClassVar[Sequence[str]] = WEIGHTED_TYPES

    def __init__(
        self,
        model: nn.Module,
        config_list: Sequence[Mapping[str, Any]] | None = None,
        optimizer: Optimizer | None = None,
        *,
        extensions: Sequence[object] = (),
        dummy_input: Any = None,
        **arguments: Any,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise ConfigError(
                [Problem(f"model is a {type(model).__name__}", "/model", None, "needs: nn.Module")],
                type(self).__name__,
            )
        if optimizer is not None and not hasattr(optimizer, "register_step_post_hook"):
            problem = Problem(
                f"optimizer is a {type(optimizer).__name__}",
                "/optimizer",
                None,
                "needs: torch.optim.Optimizer; with another kind leave it out and call step() "
                "after each minibatch",
            )
            raise ConfigError([problem], type(self).__name__)
        refuse_flat(model, type(self).__name__)
        self.bound_model = model
        self.optimizer = optimizer
        self.extensions = tuple(extensions)
        self.dummy_input = dummy_input
        self.epoch = 0
        self._describe_plugin()
        self.config_list, own = self._check(config_list, arguments)
        for name, value in own.items():
            setattr(self, name, value)
        self.wrappers: list[Wrapper] = self._wrapped()
        refuse_unusable(self.wrappers, describe(self))

    def get_modules_wrapper(self) -> list[Wrapper]:
        """Return one wrapper per layer that the algorithm works on, in the model's order."""
        return list(self.wrappers)

    def get_modules_to_compress(self) -> list[tuple[Wrapper, Mapping[str, Any]]]:
        """Return each layer's wrapper with the entry that applies to it."""
        return [(wrapper, wrapper.config) for wrapper in self.wrappers]

    def set_wrappers_attribute(self, name: str, value: Any) -> None:
        """Set an attribute on every wrapper; each gets a buffer of its own if it is a tensor."""
        for wrapper in self.wrappers:
            wrapper.set_attribute(name, value)

    def check_layer(self, module: nn.Module) -> str | None:
        """Return why the algorithm cannot work on ``module``, or None. A subclass may override it.

        Asked for each selected layer when the compressor is made.
        """
        return None

    def get_extra_state(self) -> dict[str, Any]:
        """Return what a subclass must save beside its wrappers; tensors and plain values."""
        return {}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`get_extra_state`."""

    # -- for subclasses inside the engine ------------------------------------------------------

    def _participants(self) -> Iterable[Configured]:
        """Yield the algorithms of the stack, innermost first."""
        yield self

    def _state_replaced(self) -> None:
        """React to wrappers whose buffers and attributes were restored."""

    def _needs_weight(self, entry: Mapping[str, Any]) -> bool:
        return True

    def _describe_plugin(self) -> None:
        plugin = next(
            (found for cls in type(self).__mro__ if (found := registry.find_class(cls))), None
        )
        own = plugin is not None and registry.find_class(type(self)) is not None
        self.plugin = plugin
        self.plugin_name = plugin.name if plugin is not None and own else type(self).__name__

    def _check(
        self, config_list: Sequence[Mapping[str, Any]] | None, arguments: dict[str, Any]
    ) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        return config.check_entries(
            self.plugin, config_list, arguments, kind=self.kind, source=type(self).__name__
        )

    def _wrapped(self) -> list[Wrapper]:
        return [Wrapper(s.module, s.name, s.config) for s in self._select()]

    def _select(self) -> list[Selected]:
        return select_layers(
            self.bound_model,
            self.config_list,
            default_types=self.default_op_types,
            needs_weight=self._needs_weight,
            check=self.check_layer,
            source=describe(self),
        )
