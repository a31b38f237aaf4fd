"""Example inputs of a model, and its output on them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from engine.errors import EngineError
from engine.user_code.randomness import random_state


class Example(NamedTuple):
    """Positional and keyword arguments of one call of a model."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def tensors(self) -> list[Tensor]:
        """Return every tensor among the arguments."""
        return [leaf for leaf in tree_leaves((self.args, self.kwargs)) if isinstance(leaf, Tensor)]


def example_of(model: nn.Module, args: Any, kwargs: Mapping[str, Any] | None = None) -> Example:
    """Return what ``args`` stands for.

    Args:
        model: says on which device and in which dtype a tensor for a bare shape is made.
        args: one tensor, a tuple or list of positional arguments, or the shape of the one input: a
            tuple of whole numbers, batch included, filled with standard normal values.
        kwargs: keyword arguments.

    Raises:
        EngineError: a shape with a size below one.
    """
    named = dict(kwargs or {})
    if not isinstance(args, tuple | list):
        return Example((args,), named)
    sizes = [size for size in args if isinstance(size, int) and not isinstance(size, bool)]
    if not args or len(sizes) < len(args):
        return Example(tuple(args), named)
    if min(sizes) < 1:
        raise EngineError(f"an input's shape has sizes of at least 1, got {tuple(args)}")
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    with random_state(model):
        return Example((torch.randn(*sizes, dtype=like.dtype, device=like.device),), named)


def call(model: nn.Module, example: Example) -> Any:
    """Return the model's output.

    Raises:
        EngineError: the model does not run on the example, with the shapes that it was given.
    """
    try:
        return model(*example.args, **example.kwargs)
    except Exception as error:
        shapes = ", ".join(f"{tuple(t.shape)} {t.dtype}" for t in example.tensors()) or "no tensor"
        raise EngineError(
            f"the model does not run on the example inputs: {type(error).__name__}: {error}\n"
            f"  it was given: {shapes}"
        ) from error


def arguments_of(dummy_input: Any) -> tuple[Any, Mapping[str, Any] | None]:
    """Return positional and keyword arguments: a mapping is of keywords, all else positional."""
    return ((), dummy_input) if isinstance(dummy_input, Mapping) else (dummy_input, None)
