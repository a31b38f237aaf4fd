"""Numbers that Python and PyTorch share, for bookkeeping that costs less than a kernel.

A training step of a small layer takes some tens of microseconds, and each operator on a tensor of
one number one or two: a range followed with operators costs more than the layer. Here a number
written in Python is at once in a buffer, and what a reduction writes is read without an operator.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from engine.quantization.affine import SMALL, Rounding, apply_rounding
from engine.quantization.scheme import Scheme

#: Places of a grid's numbers.
SCALE, ZERO, LOW, HIGH, INVERSE = range(5)

#: How far within the ties at its ends a grid clips, in steps. What is clipped there rounds to the
#: last integer whatever the product's own rounding: 16 bits of 24 leave 1/128 of a step for that.
_WITHIN = 0.5 - 2**-6
_TINY, _INFINITY = torch.finfo(torch.float32).tiny, float("inf")
_NEVER = torch.empty(0)
_hardtanh: Callable[[Tensor, float, float], Tensor] = torch._C._nn.hardtanh


class Scalars:
    """float32 numbers on the CPU that are items of a Python array and buffers of a module.

    Args:
        buffers: the names of the module's buffers and how many numbers each has: 0 for a tensor
            without dimensions, n for one of shape (n,).
        extra: how many numbers follow that are in no buffer.

    Attributes:
        floats: the numbers, buffers first, in order; what is assigned is rounded to float32.
        tensors: for each number a tensor without dimensions, on the same memory.

    A copy is linked to its own module when it is first used.
    """

    __slots__ = ("_buffers", "_extra", "_views", "floats", "tensors")

    def __init__(self, buffers: Mapping[str, int], extra: int = 0) -> None:
        self._buffers = dict(buffers)
        self._extra = extra
        self._views = [(name, _NEVER) for name in buffers]
        self.floats = array("f")
        self.tensors: tuple[Tensor, ...] = ()

    def linked(self, owner: nn.Module) -> bool:
        """Return whether ``owner``'s buffers are these numbers; they may have been replaced."""
        buffers = owner._buffers
        for name, view in self._views:  # noqa: SIM110 - asked in every forward, all() is slower
            if buffers[name] is not view:
                return False
        return True

    def link(self, owner: nn.Module) -> None:
        """Put tensors on this memory in the place of ``owner``'s buffers, their values kept."""
        values: list[float] = []
        for name in self._buffers:
            buffer: Any = owner._buffers[name]
            values += buffer.reshape(-1).tolist()
        self.floats = array("f", [*values, *[0.0] * self._extra])
        whole = torch.frombuffer(self.floats, dtype=torch.float32)
        self.tensors = whole.unbind()
        self._views.clear()
        start = 0
        for name, size in self._buffers.items():
            view = whole[start : start + size] if size else whole[start]
            owner._buffers[name] = view
            self._views.append((name, view))
            start += size or 1

    def __reduce__(self) -> tuple[Any, ...]:
        return Scalars, (self._buffers, self._extra)

    def __deepcopy__(self, memo: dict[int, Any]) -> Scalars:
        return Scalars(self._buffers, self._extra)


def can_share(tensor: Tensor) -> bool:
    """Return whether numbers for ``tensor`` may be read in Python: eager, on the CPU, float32."""
    return (
        tensor.dtype == torch.float32
        and tensor.is_cpu
        and type(tensor) in (Tensor, nn.Parameter)
        and not torch.compiler.is_compiling()
    )


def place(floats: array[float], scheme: Scheme) -> None:
    """Set scale and zero point for the range in ``floats``, which is left as it is.

    This is :func:`engine.quantization.affine.affine_parameters` on Python numbers, each result
    rounded to float32 as there: both give the same grid, bit for bit.
    """
    qmin, qmax = scheme.qmin, scheme.qmax
    low, high = floats[LOW], floats[HIGH]
    low = low if low < 0 and scheme.covers_negative else 0.0
    high = high if high > 0 else 0.0
    # Not shared: another thread may be at the same weight.
    rounded = array("f", (high - low,))
    floats[SCALE] = max(-low, high) / qmax if scheme.symmetric else rounded[0] / (qmax - qmin)
    scale = floats[SCALE]
    zero = min(max(0, qmin), qmax)
    if not _TINY <= scale < _INFINITY:
        floats[SCALE] = 1.0
    elif not scheme.symmetric:
        rounded[0] = low / scale
        rounded[0] = qmin - rounded[0]
        zero = min(max(round(rounded[0]), qmin), qmax)
    floats[ZERO] = zero


def round_shared(
    tensor: Tensor,
    scalars: Scalars,
    scheme: Scheme,
    extremes: tuple[float, float] | None = None,
    *,
    never_clips: bool = False,
) -> Tensor:
    """Return float32 ``tensor`` rounded to the grid in ``scalars``.

    The values are those of :func:`engine.quantization.affine.fake_quantize`, the gradient as well
    but at the ties between the last integer and the first that is clipped.

    Args:
        tensor: float32, on the CPU.
        scalars: the numbers of a grid.
        scheme: the integers.
        extremes: of ``tensor``, where they are known: what lies within the grid needs no mask.
        never_clips: the grid is over the tensor's extremes: the gradient is the identity.
    """
    floats, tensors = scalars.floats, scalars.tensors
    scale = floats[SCALE]
    floats[INVERSE] = 1.0 / scale
    low, high = scheme.qmin - floats[ZERO], scheme.qmax - floats[ZERO]
    limits = (low - _WITHIN) * scale, (high + _WITHIN) * scale
    inside = extremes is not None and limits[0] < extremes[0] and extremes[1] < limits[1]
    if tensor.numel() > SMALL:
        free = inside or never_clips
        to = Rounding(tensors[SCALE], tensors[INVERSE], None, low, high, free, limits)
        return apply_rounding(tensor, to)
    # Operators whose gradient PyTorch itself has, the identity or that of clipping; the values are
    # rounded beneath them, which changes nothing that is kept for backward.
    if inside or never_clips:
        result = tensor.clone()
        values = result.detach().mul_(tensors[INVERSE]).round_()
        if not inside:  # a tie at an end, or an end that is not finite
            values.clamp_(low, high)
        values.mul_(tensors[SCALE])
    else:
        result = _hardtanh(tensor, *limits)
        result.detach().mul_(tensors[INVERSE]).round_().mul_(tensors[SCALE])
    return result
