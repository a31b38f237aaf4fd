"""A layer's affine grids, kept on its wrapper: so they are saved, copied and exported with it.

For each quantized tensor, ``key`` being "weight", "input" or "output", a wrapper has the buffers
``{key}_scale`` and ``{key}_zero_point`` and the integers ``{key}_qmin`` and ``{key}_qmax``; where
the range is followed over training also the buffer ``{key}_range``, [low, high], NaN before the
first batch, and whether there was one, ``{key}_seen``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from engine.quant_types import QuantType
from engine.quantization.affine import affine_parameters, fake_quantize
from engine.wrapper import Wrapper


def keep_grid(wrapper: Wrapper, quant_type: QuantType, qmin: int, qmax: int) -> None:
    """Give ``wrapper`` the grid of ``quant_type``; inputs and outputs get a range to follow."""
    key = quant_type.key
    setattr(wrapper, f"{key}_qmin", qmin)
    setattr(wrapper, f"{key}_qmax", qmax)
    wrapper.set_attribute(f"{key}_scale", torch.ones(()))
    wrapper.set_attribute(f"{key}_zero_point", torch.zeros(()))
    if quant_type != QuantType.WEIGHT:
        wrapper.set_attribute(f"{key}_range", torch.full((2,), torch.nan))
        setattr(wrapper, f"{key}_seen", False)


def quantize_over_extremes(weight: Tensor, wrapper: Wrapper, *, symmetric: bool = False) -> Tensor:
    """Return ``weight`` on the grid from its minimum to its maximum; the grid is noted.

    Nothing clips, so the gradient passes unchanged.
    """
    low, high = weight.detach().float().aminmax()
    qmin, qmax = _integers(wrapper, "weight")
    scale, zero_point = affine_parameters(low, high, qmin, qmax, symmetric=symmetric)
    _note(wrapper, "weight", scale, zero_point)
    return fake_quantize(weight, scale, zero_point, qmin, qmax, never_clips=True)


@torch.no_grad()
def follow_range(tensor: Tensor, wrapper: Wrapper, quant_type: QuantType, decay: float) -> None:
    """Move the range towards ``tensor``'s: the first batch sets it, later ones by 1 - ``decay``.

    A batch that holds NaN or infinity moves nothing.
    """
    key = quant_type.key
    now = torch.stack(tensor.detach().float().aminmax())
    past = _buffer(wrapper, f"{key}_range", now.device)
    moved = now.where(past.isnan(), past.lerp(now, 1 - decay))
    past.copy_(moved.where(now.isfinite().all(), past))
    setattr(wrapper, f"{key}_seen", True)
    _note(wrapper, key, *affine_parameters(past[0], past[1], *_integers(wrapper, key)))


def quantize_over_range(tensor: Tensor, wrapper: Wrapper, quant_type: QuantType) -> Tensor:
    """Return ``tensor`` on the grid of the followed range; as it is while there is none."""
    key = quant_type.key
    if not getattr(wrapper, f"{key}_seen"):
        return tensor
    scale = _buffer(wrapper, f"{key}_scale", tensor.device)
    zero_point = _buffer(wrapper, f"{key}_zero_point", tensor.device)
    return fake_quantize(tensor, scale, zero_point, *_integers(wrapper, key))


#: PyTorch before 2.7 does not say; there a quantized model is exported by ``export_model`` only.
_is_exporting: Callable[[], bool] = getattr(torch.compiler, "is_exporting", lambda: False)


def _integers(wrapper: Wrapper, key: str) -> tuple[int, int]:
    return getattr(wrapper, f"{key}_qmin"), getattr(wrapper, f"{key}_qmax")


def _note(wrapper: Wrapper, key: str, scale: Tensor, zero_point: Tensor) -> None:
    if _is_exporting():  # an exported graph may not change what it does not own
        return
    _buffer(wrapper, f"{key}_scale", scale.device).copy_(scale)
    _buffer(wrapper, f"{key}_zero_point", scale.device).copy_(zero_point)


def _buffer(wrapper: Wrapper, name: str, device: torch.device) -> Tensor:
    """Return a buffer where it is needed: the model may have moved since it was made."""
    buffer: Any = wrapper._buffers[name]
    if buffer.device != device:
        buffer = wrapper._buffers[name] = buffer.to(device)
    return buffer  # type: ignore[no-any-return]
