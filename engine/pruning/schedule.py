"""Schedules: how much to remove when, around any pruner that says what to remove."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

from torch import nn
from torch.optim import Optimizer

from engine import config
from engine.attach.compressor import Compressor
from engine.errors import ConfigError, Problem
from engine.files import PathLike
from engine.plugins import registry
from engine.pruning.pruner import Pruner
from engine.user_code.batches import Forward


class Schedule(Pruner):
    """Base of plugins that wrap the ``sparsity`` hook of another pruner.

    A subclass implements ``sparsity`` as a wrapper (``@hookimpl(wrapper=True)``): what it yields
    for is the fraction that the entry asks for in the end. The pruner inside is made here, from
    the same configuration; it shares this schedule's wrappers and stack.

    Args:
        model: the user's model.
        config_list: entries with the schedule's settings and the pruner's.
        optimizer: as for any compressor.
        pruning_algorithm: name or class of the pruner inside; the schema's default otherwise.
        extensions: extension instances.
        dummy_input: example inputs, as for any compressor.
        batches, forward: what the pruner inside is calibrated with, as for any compressor.
        **arguments: the schedule's and the pruner's own arguments.
    """

    #: The argument that names the pruner inside, for a class without a schema.
    base_argument: ClassVar[str] = "pruning_algorithm"
    reads_weights = True  # as its pruner does

    def __init__(
        self,
        model: nn.Module,
        config_list: Sequence[Mapping[str, Any]] | None = None,
        optimizer: Optimizer | None = None,
        pruning_algorithm: str | type[Pruner] | None = None,
        *,
        extensions: Sequence[object] = (),
        dummy_input: Any = None,
        batches: Iterable[Any] | str | None = None,
        forward: Forward | str | None = None,
        states_folder: PathLike | None = None,
        **arguments: Any,
    ) -> None:
        if pruning_algorithm is not None:
            arguments["pruning_algorithm"] = pruning_algorithm
        super().__init__(
            model,
            config_list,
            optimizer,
            extensions=extensions,
            dummy_input=dummy_input,
            batches=batches,
            forward=forward,
            states_folder=states_folder,
            **arguments,
        )
        # The pruner inside may have put its own state on its wrappers already: they are kept.
        for wrapper, own in zip(self.base.wrappers, self.wrappers, strict=True):
            wrapper.config = own.config
        self.wrappers = self.base.wrappers
        self.base.host = self

    def unfinished(self) -> str | None:
        """Return why the schedule has not done what it is there for, or None.

        Asked when a trained model is exported or made smaller. A subclass whose rounds are not
        epochs has its own.
        """
        if self.epoch == 0 and self._epochs_told != 1:  # once: the first epoch is not over yet
            return "update_epoch was never called with an epoch above 0: it is still at epoch 0"
        return None

    def _finishing(self) -> None:
        reason = self.unfinished() if self._trained else None
        if reason is not None:
            warnings.warn(f"{self.plugin_name}: {reason}", stacklevel=4)

    def _check(
        self, config_list: Sequence[Mapping[str, Any]] | None, arguments: dict[str, Any]
    ) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        composed = config.check_composed(
            self.plugin,
            config_list,
            arguments,
            base_argument=self.base_argument,
            source=type(self).__name__,
        )
        base_class = composed.base_class or registry.find(composed.base_name).load()
        if not issubclass(base_class, Pruner):
            fault = Problem(
                f"{base_class.__name__} is no pruner",
                f"/{self.base_argument}",
                None,
                "needs: the name of a pruner or a subclass of engine.Pruner",
            )
            raise ConfigError([fault], type(self).__name__)
        self.base: Pruner = base_class(
            self.bound_model,
            composed.base_entries,
            self.optimizer,
            batches=self.batches,
            forward=self.forward,
            states_folder=self.states_folder,
            **composed.base_arguments,
        )
        self.default_op_types = self.base.default_op_types  # type: ignore[misc]
        self.straight_through = self.base.straight_through  # type: ignore[misc]
        self.reads_weights = self.reads_weights and self.base.reads_weights  # type: ignore[misc]
        return composed.entries, composed.arguments

    def _participants(self) -> Iterable[Compressor]:
        yield self.base
        yield self
