"""Products that are not computed: while groups are looked for only shapes count.

Convolutions and matrix products take most of a forward pass. Their outputs are zeros instead, of
the right shape. Where a value that follows from these would decide anything (a branch of the code,
an index, a size) :class:`ValuesNeededError` is raised, and the model is run as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from engine.speedup.living import Living
from engine.speedup.rules import pointwise


class ValuesNeededError(Exception):
    """Something depends on values that were not computed."""


class Guesses:
    """Knows which tensors hold values that follow from products that were not computed.

    Attributes:
        failed: a value was needed; also where the model's code caught the error.
    """

    def __init__(self) -> None:
        self.failed = False
        self._guessed: Living[bool] = Living()

    def spare(self, name: str, args: Sequence[Any]) -> Tensor | None:
        """Return zeros in place of a product's output, None for any other operator."""
        shape = _SHAPES[name](*args) if name in _SHAPES else None
        tensors = [value for value in args if isinstance(value, Tensor)]
        # What is wrong with other tensors, the operator says best.
        if shape is None or len({(t.dtype, t.device) for t in tensors}) > 1:
            return None
        x = args[0] if name == "convolution" else args[-1]
        output: Tensor = x.new_zeros(shape)
        last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.dim())
        if name == "convolution" and last is not None and not x.is_contiguous():
            output = output.contiguous(memory_format=last)
        self._guessed.put(output, True)
        return output

    def follow(self, func: Any, name: str, given: list[Tensor], outputs: list[Tensor]) -> None:
        """Note that ``outputs`` follow from guesses if any of the tensors ``given`` does.

        Raises:
            ValuesNeededError: what the operator does depends on values that were not computed.
        """
        guessed = [t for t in given if self._guessed.get(t)]
        if not guessed:
            return
        decided = torch.Tag.data_dependent_output in func.tags
        decided |= torch.Tag.dynamic_output_shape in func.tags
        # Places, or what is chosen; where it is combined element by element, all is followed.
        chooses = not all(t.is_floating_point() for t in guessed)
        chooses &= name.rstrip("_") not in pointwise.RULES
        # Whatever else sees this memory is not known to follow from guesses.
        spreads = name.endswith("_") and not self._guessed.get(given[0])
        if not outputs or decided or chooses or spreads:
            self.need(guessed[0])
        for output in outputs:
            self._guessed.put(output, True)

    def need(self, tensor: Tensor) -> None:
        """Say that the values of ``tensor`` are looked at.

        Raises:
            ValuesNeededError: they were not computed.
        """
        if self._guessed.get(tensor):
            self.failed = True
            raise ValuesNeededError


def _convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> list[int] | None:
    rank = weight.dim() - 2
    lists = (stride, padding, dilation, output_padding)
    if x.dim() != weight.dim() or any(len(each) != rank for each in lists):
        return None
    shape = [x.shape[0], weight.shape[1] * groups if transposed else weight.shape[0]]
    for size, kernel, s, p, d, more in zip(
        x.shape[2:], weight.shape[2:], *lists[:3], output_padding, strict=True
    ):
        span = d * (kernel - 1)
        if transposed:
            shape.append((size - 1) * s - 2 * p + span + more + 1)
        else:
            shape.append((size + 2 * p - span - 1) // s + 1)
    fits = x.shape[1] == (weight.shape[0] if transposed else weight.shape[1] * groups)
    fits &= bias is None or list(bias.shape) == shape[1:2]
    return shape if fits and min(shape) > 0 else None


def _product(a: Tensor, b: Tensor) -> list[int] | None:
    fits = a.shape[-1] == b.shape[-2] and a.shape[:-2] == b.shape[:-2]
    return [*a.shape[:-1], b.shape[-1]] if fits else None


def _fits(bias: Tensor, b: Tensor) -> bool:
    return bias.dim() == 1 and bias.shape[0] in (1, b.shape[-1])


_SHAPES: dict[str, Any] = {
    "convolution": _convolution,
    "mm": _product,
    "bmm": _product,
    "addmm": lambda bias, a, b: _product(a, b) if _fits(bias, b) else None,
    "baddbmm": lambda bias, a, b: _product(a, b) if _fits(bias, b) else None,
}
