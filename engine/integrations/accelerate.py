"""Compression inside a loop of one's own that Hugging Face accelerate runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from engine.attach.compressor import Compressor
from engine.integrations.given import attached, join, load_beside, refuse_sharded, save_beside

if TYPE_CHECKING:
    from accelerate import Accelerator


def compress(
    accelerator: Accelerator, model: nn.Module, compressor: Any, **arguments: Any
) -> Compressor:
    """Compress ``model`` while an accelerator trains it; return the compressor, attached.

    Called before ``accelerator.prepare``. ``save_state`` writes the compressor's state into its
    folder, on the main process; ``load_state`` loads it before the optimizer's. The loop tells
    epochs by ``compressor.update_epoch(epoch)``.

    Args:
        accelerator: which has prepared nothing yet.
        model: the model, not prepared.
        compressor: what :func:`engine.create_compressor` takes: a mapping or the path of a file; or
            a compressor of this very model, attached or not.
        **arguments: for :func:`engine.create_compressor`, such as ``dummy_input``.

    Raises:
        EngineError: the compressor works on another model, or parameters would be sharded.
        ConfigError: as of :func:`engine.create_compressor`.
    """
    kind = str(accelerator.distributed_type)
    if kind.rpartition(".")[2] in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        refuse_sharded(f"accelerate with {kind}")
    made = attached(model, compressor, arguments)

    def save(models: Any, weights: Any, folder: str) -> None:
        if accelerator.is_main_process:
            save_beside(made, folder)

    def load(models: Any, folder: str) -> None:
        load_beside(made, folder)
        join(made, accelerator._optimizers)

    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)
    return made
