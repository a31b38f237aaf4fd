"""Parameters that cannot be worked on are refused before anything is done with them.

Sharded parameters are refused in one sentence before anything is computed on a part of them: a mask
of half a weight, or a grid over half of its values, is wrong without a word.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from engine.attach.wrapper import Wrapper
from engine.errors import EngineError
from engine.plugins.parameters import WORKS, fault_in, is_instance


def refuse_unusable(wrappers: Iterable[Wrapper], source: str) -> None:
    """Raise EngineError where the parameters of a layer cannot be worked on, and say what to do.

    Args:
        wrappers: the layers that an algorithm has been given.
        source: the algorithm, for the message.

    Raises:
        EngineError: a parameter is sharded (FSDP2, tensor parallel, ZeRO-3), on the meta
            device, sparse, or was made under ``torch.inference_mode()``.
    """
    for wrapper in wrappers:
        if fault := fault_in(wrapper):
            raise EngineError(f"{source}: {fault}")


def refuse_flat(model: nn.Module, source: str) -> None:
    """Raise EngineError where FSDP's first version holds parameters of the model, as flat ones."""
    for name, module in model.named_modules():
        if is_instance(module, "torch.distributed.fsdp", "FullyShardedDataParallel"):
            where = f'"{name}"' if name else "the model"
            raise EngineError(
                f"{source}: {where} is wrapped in FullyShardedDataParallel, whose flat parameters "
                f"are not supported\n  {WORKS}"
            )
