"""Compression inside the ``Trainer`` of Hugging Face transformers."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from engine.attach.compressor import Compressor
from engine.errors import EngineError
from engine.integrations.given import attached, join, load_beside, refuse_sharded, save_beside
from engine.integrations.progress import sparsity_of

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments


def compress(
    trainer: Trainer,
    compressor: Any,
    *,
    at_end: Callable[[Compressor], object] | None = None,
    **arguments: Any,
) -> Compressor:
    """Compress the model of ``trainer`` while it trains; return the compressor, attached.

    ``trainer.train()`` tells it epochs; its state is saved beside each checkpoint, and loaded with
    ``resume_from_checkpoint`` and with the best model at the end. What a pruner has removed stands
    in the log as ``sparsity``.

    Args:
        trainer: made, and not trained yet.
        compressor: what :func:`engine.create_compressor` takes: a mapping or the path of a file; or
            a compressor of this very model, attached or not.
        at_end: called once with the compressor when training is over and the best model is loaded,
            on the first process alone: to export, or to make the model smaller.
        **arguments: for :func:`engine.create_compressor`, such as ``dummy_input``.

    Raises:
        EngineError: the trainer makes its model anew for each run, has trained or shards its
            parameters, or the compressor works on another model.
        ConfigError: as of :func:`engine.create_compressor`.
    """
    model: Any = trainer.model
    if getattr(trainer, "model_init", None) is not None:
        raise EngineError(
            "this trainer makes its model anew in each run (model_init), and a compressor works on "
            "one model\n  give the trainer model=..."
        )
    if trainer.optimizer is not None and trainer.state.global_step:
        raise EngineError("the trainer has trained already: compress before trainer.train()")
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        refuse_sharded("FSDP or DeepSpeed")
    made = attached(model, compressor, arguments)
    callback = _Callback(made, at_end)
    _load_with_the_model(trainer, callback)
    _join_the_optimizer(trainer, made)
    _log_sparsity(trainer, made)
    trainer.add_callback(callback)
    return made


class _Callback(TrainerCallback):
    """Tells the compressor what the trainer does."""

    def __init__(
        self, compressor: Compressor, at_end: Callable[[Compressor], object] | None
    ) -> None:
        self._compressor = compressor
        self._at_end = at_end
        self._resumed: int | None = None

    def load(self, folder: str, *, resumed: bool) -> None:
        """Load the compressor's state of a checkpoint."""
        load_beside(self._compressor, folder)
        self._resumed = self._compressor.epoch if resumed else None

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> None:
        epoch = math.floor((state.epoch or 0.0) + 1e-6)
        # A checkpoint from within an epoch has what was done when that began.
        begun, self._resumed = self._resumed, None
        if begun != epoch:
            self._compressor.update_epoch(epoch)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> None:
        folder = Path(str(args.output_dir), f"checkpoint-{state.global_step}")
        if args.should_save and folder.is_dir():
            save_beside(self._compressor, folder)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> None:
        best = state.best_model_checkpoint
        if args.load_best_model_at_end and best is not None:
            self.load(best, resumed=False)
        if self._at_end is not None and state.is_world_process_zero:
            self._at_end(self._compressor)


def _load_with_the_model(trainer: Trainer, callback: _Callback) -> None:
    """Load the compressor's state behind the model's, before there is an optimizer.

    What the algorithm has learned is in the optimizer's state, which fits only an optimizer that
    holds it. No callback is asked at that point.
    """
    own = getattr(trainer, "_load_from_checkpoint", None)
    if own is None:
        raise EngineError(
            "this version of transformers loads checkpoints in a way that is not known here\n"
            "  pip install 'transformers>=5.17,<6'"
        )

    def load(checkpoint: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        own(checkpoint, *args, **kwargs)
        callback.load(os.fspath(checkpoint), resumed=True)

    trainer.__dict__["_load_from_checkpoint"] = load


def _join_the_optimizer(trainer: Trainer, compressor: Compressor) -> None:
    own = trainer.create_optimizer

    def create_optimizer(*args: Any, **kwargs: Any) -> Optimizer:
        optimizer: Optimizer = own(*args, **kwargs)
        join(compressor, [optimizer])
        return optimizer

    trainer.__dict__["create_optimizer"] = create_optimizer


def _log_sparsity(trainer: Trainer, compressor: Compressor) -> None:
    own = trainer.log

    def log(logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        sparsity = sparsity_of(compressor)
        own(logs if sparsity is None else {**logs, "sparsity": sparsity}, *args, **kwargs)

    trainer.__dict__["log"] = log
