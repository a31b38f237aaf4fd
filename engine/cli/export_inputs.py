"""What ``engine export`` is told of a model's inputs: a shape, batches, or inputs in a file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.errors import EngineError


def shape_of(text: str | None) -> list[int] | None:
    """Return the sizes of "1,3,224,224"; None of None."""
    if text is None:
        return None
    try:
        sizes = [int(size) for size in text.split(",")]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1:
        raise EngineError(
            f'--input-shape needs sizes of at least 1, such as 1,3,224,224, got "{text}"'
        )
    return sizes


def batches_of(path: str) -> list[Any]:
    """Return the batches in a file of ``torch.save``."""
    from torch import Tensor

    from engine.files import load_tensors

    saved = load_tensors(path)
    batches = list(saved.split(64)) if isinstance(saved, Tensor) and saved.dim() else saved
    if not isinstance(batches, list) or not all(isinstance(batch, Tensor) for batch in batches):
        raise EngineError(f"--batches: {path} holds no tensor of inputs and no list of them")
    return batches


def example_of(path: str) -> Any:
    """Return example inputs of a file: a tensor, a tuple of positional ones, or keywords."""
    from torch import Tensor

    from engine.files import load_tensors

    saved = load_tensors(path)
    parts = saved.values() if isinstance(saved, Mapping) else saved
    parts = [saved] if isinstance(saved, Tensor) else parts
    whole = isinstance(saved, (Tensor, Mapping, tuple, list))
    if not whole or not parts or not all(isinstance(part, Tensor) for part in parts):
        raise EngineError(
            f"--example: {path} holds no tensor, no tuple of tensors and no mapping of them\n"
            '  torch.save({"input_ids": tokens}, path) writes one'
        )
    return tuple(saved) if isinstance(saved, list) else saved
