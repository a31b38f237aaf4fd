"""Rounding to a grid whose step and offset are parameters.

Esser et al. 2020, "Learned Step Size Quantization", arXiv 1902.08153; Bhalgat et al. 2020, "LSQ+:
Improving low-bit quantization through learnable offsets and better initialization",
arXiv 2004.09576.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from engine.quantization.affine import wide


def round_learned(
    tensor: Tensor,
    scale: Tensor,
    offset: Tensor | None,
    qmin: int,
    qmax: int,
    gradient_scale: float,
) -> Tensor:
    """Return ``tensor`` rounded to a grid whose scale and offset are learned.

    ``round(clip((v - offset) / s, qmin, qmax)) s + offset``, half to even (LSQ, eq. 1 and 2; LSQ+,
    eq. 3 and 4). The offset counts as the whole number of steps that is nearest, so that zero stays
    on the grid and integers can be exported.

    Gradients: of ``tensor``, 1 strictly inside and 0 elsewhere (LSQ, eq. 5); of ``scale``
    ``round(x) - x`` inside, with ``x = (v - offset) / s``, and ``qmin`` or ``qmax`` elsewhere
    (eq. 3); of ``offset``, 0 inside and 1 elsewhere (LSQ+, eq. 5); the last two are multiplied by
    ``gradient_scale``.

    Args:
        tensor: any shape, floating; computed with in float32 or wider, returned in its own dtype.
        scale: float32, positive, broadcasts against ``tensor``.
        offset: like ``scale``; None stands for 0.
        qmin: smallest integer.
        qmax: largest integer.
        gradient_scale: LSQ's ``g = 1 / sqrt(N qmax)``, section 2.2.
    """
    apply: Callable[..., Tensor] = _RoundLearned.apply
    return apply(tensor, scale, offset, (qmin, qmax, gradient_scale))


def zero_point_of(scale: Tensor, offset: Tensor, qmin: int, qmax: int) -> Tensor:
    """Return the integer that stands for 0: ``round(-offset / scale)``, within [qmin, qmax]."""
    return (-offset / scale).round_().clamp_(qmin, qmax)


class _RoundLearned(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        tensor: Tensor,
        scale: Tensor,
        offset: Tensor | None,
        settings: tuple[int, int, float],
    ) -> Tensor:
        qmin, qmax, _ = settings
        zero = None if offset is None else zero_point_of(scale, offset, qmin, qmax)
        ctx.save_for_backward(tensor, scale, zero)
        ctx.settings = settings
        q = _position(tensor, scale, zero).clamp_(qmin, qmax).round_()
        q = q if zero is None else q.sub_(zero)
        return q.mul_(scale).to(tensor.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None]:
        tensor, scale, zero = ctx.saved_tensors
        qmin, qmax, gradient_scale = ctx.settings
        position = _position(tensor, scale, zero)
        grad = grads[0].to(position.dtype)
        inside = torch.ops.aten.hardtanh_backward(grad, position, qmin, qmax)
        rounded = position.clamp(qmin, qmax).round_()
        of_scale = (grad * rounded).sub_(position.mul_(inside)).sum_to_size(scale.shape)
        of_offset = None
        if zero is not None:
            of_offset = (grad - inside).sum_to_size(scale.shape) * gradient_scale
        return inside.to(tensor.dtype), of_scale * gradient_scale, of_offset, None


def _position(tensor: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
    """Return ``tensor`` counted in steps from the integer 0, a fresh tensor."""
    position = wide(tensor) * scale.reciprocal()
    return position if zero is None else position.add_(zero)
