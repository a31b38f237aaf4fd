"""One algorithm and its layers in one model: chosen and checked, nothing attached yet."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn
from torch.optim import Optimizer

from engine import config
from engine.attach.calibration_data import calibration_data, folder_of_states
from engine.attach.changes import Changes
from engine.attach.selection import WEIGHTED_TYPES, Selected, select_layers
from engine.attach.unusable import refuse_flat, refuse_unusable
from engine.attach.wrapper import Wrapper
from engine.errors import ConfigError, EngineError, Problem
from engine.files import PathLike
from engine.plugins import registry
from engine.plugins.stack import describe
from engine.user_code.batches import Forward

#: What ``__init__`` makes, and methods ask for first.
_MADE = frozenset(
    ("bound_model", "config_list", "host", "wrappers", "extensions", "_stack", "_hooks")
)


class Configured:
    """What a compressor is before it is attached: a configuration that holds for a model.

    Arguments are those of :class:`engine.Compressor`.

    Raises:
        ConfigError: the configuration is wrong by itself or for this model.
    """

    kind: ClassVar[str] = ""
    #: What ``default`` in ``op_types`` stands for.
    default_op_types: ClassVar[Sequence[str]] = WEIGHTED_TYPES
    #: Whether the algorithm only reads weights: no gradient of them, and no writing. Then layers
    #: whose weight ``torch.nn.utils.parametrize`` computes may be given to it.
    reads_weights: ClassVar[bool] = False

    def __init__(
        self,
        model: nn.Module,
        config_list: Sequence[Mapping[str, Any]] | None = None,
        optimizer: Optimizer | None = None,
        *,
        extensions: Sequence[object] = (),
        dummy_input: Any = None,
        batches: Iterable[Any] | str | None = None,
        forward: Forward | str | None = None,
        states_folder: PathLike | None = None,
        **arguments: Any,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise ConfigError(
                [Problem(f"model is a {type(model).__name__}", "/model", None, "needs: nn.Module")],
                type(self).__name__,
            )
        if fault := _fault_of_optimizer(optimizer):
            problem = Problem(fault[0], "/optimizer", None, fault[1])
            raise ConfigError([problem], type(self).__name__)
        refuse_flat(model, type(self).__name__)
        self.bound_model = model
        self.optimizer = optimizer
        self.extensions = tuple(extensions)
        self.dummy_input = dummy_input
        self.epoch = 0
        #: The undo log; see :meth:`engine.Compressor.change`.
        self._changes = Changes()
        #: Whether all that needs ``batches`` is done.
        self.calibrated = False
        self._describe_plugin()
        self.batches, self.forward = calibration_data(batches, forward, self.calibration(), self)
        self.states_folder = folder_of_states(states_folder, self)
        self.config_list, own = self._check(config_list, arguments)
        for name, value in own.items():
            setattr(self, name, value)
        self.wrappers: list[Wrapper] = self._wrapped()
        refuse_unusable(self.wrappers, describe(self))

    if not TYPE_CHECKING:  # it would hide misspelt names from a type checker

        def __getattr__(self, name: str) -> Any:
            """Say what is missing where a subclass does not call ``super().__init__``."""
            if name in _MADE and "wrappers" not in self.__dict__:
                cls = type(self).__name__
                raise EngineError(
                    f"{cls} has no {name}: its __init__ does not call super().__init__\n"
                    "  call super().__init__(model, config_list, optimizer) in it, first"
                )
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @classmethod
    def selection(
        cls,
        model: nn.Module,
        config_list: Sequence[Mapping[str, Any]] | None = None,
        **arguments: Any,
    ) -> list[tuple[str, nn.Module]]:
        """Return names and modules of the layers that a compressor of this class would work on.

        None is made, and weights are not looked at: they may be on the meta device.
        :meth:`check_layer` finds the algorithm's arguments and ``bound_model``, nothing else.

        Raises:
            ConfigError: as the class itself would.
        """
        probe = cls.__new__(cls)
        probe.bound_model = model
        probe._describe_plugin()
        for name in ("batches", "forward", "states_folder"):
            arguments.pop(name, None)
        probe.config_list, own = probe._check(config_list, arguments)
        for name, value in own.items():
            setattr(probe, name, value)
        return [(selected.name, selected.module) for selected in probe._select()]

    def calibration(self) -> str:
        """Return whether batches are "required", "optional" or, "", of no use to the algorithm.

        By default what ``x-engine.calibration`` of its schema says.
        """
        return "" if self.plugin is None else self.plugin.calibration

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
            parametrized=self.reads_weights,
            source=describe(self),
        )


def _fault_of_optimizer(optimizer: Any) -> tuple[str, str] | None:
    """Return why this is no optimizer, and what is needed; None if it is one, or none is given."""
    if isinstance(optimizer, type):
        name = optimizer.__name__
        return (
            f"optimizer is the class {name}",
            f"needs: {name}(model.parameters(), ...)",
        )
    if optimizer is None or hasattr(optimizer, "register_step_post_hook"):
        return None
    needs = "needs: torch.optim.Optimizer; "
    if inspect.isroutine(optimizer):
        needs += "an evaluator or a trainer is given by name: evaluator=..., trainer=..."
        return f"optimizer is the function {optimizer.__name__}", needs
    needs += "with another kind leave it out and call step() after each minibatch"
    return f"optimizer is a {type(optimizer).__name__}", needs
