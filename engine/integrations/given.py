"""A compressor in somebody else's training: made from what is given, its optimizers, its state."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from torch import nn
from torch.optim import Optimizer

from engine.attach.compressor import Compressor
from engine.attach.create import create_compressor
from engine.attach.learned_parameters import LearnedParameters
from engine.errors import CheckpointError, EngineError
from engine.files import load_tensors, save_tensors

#: Its name, beside the model's files.
FILE_NAME = "compressor.pt"


def save_beside(compressor: Compressor, folder: str | os.PathLike[str]) -> None:
    """Write the compressor's state into ``folder``, whole or not at all."""
    save_tensors(Path(folder, FILE_NAME), compressor.state_dict())


def load_beside(compressor: Compressor, folder: str | os.PathLike[str]) -> None:
    """Load what :func:`save_beside` wrote.

    Raises:
        CheckpointError: there is nothing, it is damaged, or is not this compressor's.
    """
    path = Path(folder, FILE_NAME)
    if not path.is_file():
        raise CheckpointError(
            f"{folder} has no {FILE_NAME}: it was saved without a compressor\n"
            "  go on from a checkpoint of a compressed run, or train from its model anew"
        )
    compressor.load_state_dict(load_tensors(path))


def attached(model: nn.Module, given: Any, arguments: Mapping[str, Any]) -> Compressor:
    """Return the compressor that is given, or made of the configuration that is, attached.

    Raises:
        EngineError: it works on another model, or arguments are given beside it.
    """
    if not isinstance(given, Compressor):
        made = create_compressor(model, given, **arguments)
    elif given.bound_model is not model:
        raise EngineError("the compressor works on another model than the one that is trained")
    elif arguments:
        raise EngineError(
            f"{', '.join(map(repr, arguments))}: a compressor that is made takes no more arguments"
        )
    else:
        made = given
    made.compress()
    return made


def refuse_sharded(who: str) -> NoReturn:
    """Raise EngineError: ``who`` shards parameters."""
    raise EngineError(
        f"parameters that {who} shards are not supported yet\n"
        "  train on one process, or with distributed data parallel"
    )


def join(compressor: Compressor, optimizers: Iterable[Optimizer]) -> None:
    """Put what the algorithm learns into the optimizers, so that a saved state fits them."""
    learned = LearnedParameters(compressor.bound_model, compressor.wrappers)
    for optimizer in optimizers:
        learned.join(optimizer)
