"""Compression inside the ``Trainer`` of Lightning."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback

from engine.attach.compressor import Compressor
from engine.errors import EngineError
from engine.integrations.given import attached, join, refuse_sharded
from engine.integrations.progress import sparsity_of

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

#: Strategies that leave each process whole parameters begin with none of these.
_SHARDING = ("FSDP", "DeepSpeed", "ModelParallel")


class Compression(Callback):
    """Compresses a LightningModule while it trains: ``Trainer(callbacks=[Compression(config)])``.

    It is attached before ``configure_optimizers`` and told epochs; its state is part of each
    checkpoint, and loaded before the optimizers'. What a pruner has removed is logged as
    ``sparsity`` after each epoch.

    Args:
        compressor: what :func:`engine.create_compressor` takes: a mapping or the path of a file,
            with layers named as the LightningModule names them; or a compressor of that very
            module, attached or not.
        at_end: called once with the compressor when training is over, on the first process alone:
            to export, or to make the model smaller.
        **arguments: for :func:`engine.create_compressor`, such as ``dummy_input``.

    Attributes:
        compressor: the compressor; None before ``trainer.fit`` has begun.

    Raises:
        EngineError: by ``trainer.fit``, where the compressor works on another model, or the
            strategy shards parameters.
        ConfigError: by ``trainer.fit``, as of :func:`engine.create_compressor`.
    """

    def __init__(
        self,
        compressor: Any,
        *,
        at_end: Callable[[Compressor], object] | None = None,
        **arguments: Any,
    ) -> None:
        self.compressor: Compressor | None = None
        self._given = compressor
        self._arguments = arguments
        self._at_end = at_end
        self._told: int | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Attach, before there are optimizers."""
        if stage != "fit" or self.compressor is not None:
            return
        strategy = type(trainer.strategy).__name__
        if strategy.startswith(_SHARDING):
            refuse_sharded(strategy)
        self.compressor = attached(pl_module, self._given, self._arguments)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put what the algorithm learns into the optimizers, before their states are loaded."""
        join(self._made(), trainer.optimizers)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Tell an epoch that has begun.

        ``on_train_epoch_start`` is left out by Lightning where training goes on from a checkpoint
        of an epoch's last step.
        """
        if self._told != trainer.current_epoch:
            self._told = trainer.current_epoch
            self._made().update_epoch(trainer.current_epoch)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log what is removed."""
        sparsity = sparsity_of(self._made())
        if sparsity is not None:
            pl_module.log("sparsity", sparsity)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do what is to be done at the end."""
        if self._at_end is not None and trainer.is_global_zero:
            self._at_end(self._made())

    def state_dict(self) -> dict[str, Any]:
        """Return the compressor's state, for Lightning's checkpoint."""
        return {} if self.compressor is None else self.compressor.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the compressor's state of Lightning's checkpoint."""
        compressor = self._made()
        compressor.load_state_dict(state_dict)
        self._told = compressor.epoch

    def _made(self) -> Compressor:
        if self.compressor is None:
            raise EngineError("the compressor is made by trainer.fit: it has not begun")
        return self.compressor
