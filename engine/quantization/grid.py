"""A layer's affine grids, kept on its wrapper: so they are saved, copied and exported with it.

For each quantized tensor, ``key`` being "weight", "input" or "output", a wrapper has its grid as
``wrapper.grids[key]``, the buffers ``{key}_scale`` and ``{key}_zero_point`` and the integers
``{key}_qmin`` and ``{key}_qmax``; an activation also has the buffer ``{key}_range``, [low, high],
NaN before there is one, and ``{key}_seen``, whether there is one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from engine.attach.recomputed import is_recomputed
from engine.attach.wrapper import Wrapper
from engine.quantization.affine import fake_quantize
from engine.quantization.batch_norm import channel_factor
from engine.quantization.delay import Delay
from engine.quantization.quant_types import QuantType
from engine.quantization.scalars import HIGH, LOW, Scalars, can_share, place, round_shared
from engine.quantization.scheme import Scheme, channels_of

_INFINITY = float("inf")


class Grid:
    """The integers that one tensor of one layer is rounded to, and the range that they are over.

    Where one scale serves the whole tensor and it is float32 on the CPU, all bookkeeping is on
    Python numbers (see ``scalars.py``); elsewhere it is on tensors, and no device is waited for.
    Both give the same grid, bit for bit.

    Args:
        wrapper: the layer's; it gets the buffers.
        quant_type: which of the layer's tensors.
        scheme: the integers, and what shares a scale.
        norm: a batch norm that a weight is folded with: the grid is over
            ``weight * gamma / sqrt(running variance + eps)``, and the result is divided by it.

    Attributes:
        start: how many training steps pass before anything is rounded.
        delay: what counts them.
        waits: whether they are not over yet.
    """

    def __init__(
        self,
        wrapper: Wrapper,
        quant_type: QuantType,
        scheme: Scheme,
        norm: nn.Module | None = None,
    ) -> None:
        self.wrapper = wrapper
        self.key = key = quant_type.key
        self.scheme = scheme
        self.norm = norm
        self.start = 0
        self.delay = Delay()
        self.waits = False
        self._seen = f"{key}_seen"
        self._fixed = f"{key}_fixed"
        buffers = {f"{key}_scale": 0, f"{key}_zero_point": 0}
        shape = torch.Size()
        if quant_type == QuantType.WEIGHT:
            shape = scheme.scale_shape(wrapper.weight.shape)
            if norm is not None and scheme.group_size is None:
                shape = torch.broadcast_shapes(shape, self._factor(torch.device("cpu")).shape)
        else:
            buffers[f"{key}_range"] = 2
            wrapper.set_attribute(f"{key}_range", torch.full((2,), torch.nan))
            setattr(wrapper, self._seen, False)
        self._scalars = Scalars(buffers, extra=5 - sum(size or 1 for size in buffers.values()))
        setattr(wrapper, f"{key}_qmin", scheme.qmin)
        setattr(wrapper, f"{key}_qmax", scheme.qmax)
        wrapper.set_attribute(f"{key}_scale", torch.ones(shape))
        wrapper.set_attribute(f"{key}_zero_point", torch.zeros(shape))

    @property
    def seen(self) -> bool:
        """Whether an activation has a range; a weight has one at any time."""
        return bool(self.wrapper.__dict__.get(self._seen, True))

    def over_extremes(self, weight: Tensor) -> Tensor:
        """Return ``weight`` on the grid over its smallest and largest value; the grid is noted.

        Nothing clips, so the gradient passes unchanged. A weight that holds NaN or infinity has a
        scale of 1.
        """
        if (self.waits and not self._begins()) or not weight.numel():
            return weight
        if self.fixed:
            return self.over_fixed(weight)
        scheme = self.scheme
        if scheme.axis is None and self.norm is None and can_share(weight):
            scalars = self._shared()
            torch.aminmax(weight.detach(), out=scalars.tensors[LOW : HIGH + 1])
            place(scalars.floats, scheme)
            extremes = scalars.floats[LOW], scalars.floats[HIGH]
            never = scheme.covers_negative
            return round_shared(weight, scalars, scheme, extremes, never_clips=never)
        values = weight.detach().float()
        factor = None if self.norm is None else self._factor(weight.device)
        if factor is not None:
            values = values * factor
        scale, zero_point = self.scheme.parameters(*scheme.extremes(scheme.arranged(values)))
        if factor is not None:
            channels = factor.reshape(-1, 1, 1) if scheme.group_size is not None else factor
            scale, zero_point = scale / channels, zero_point.expand(scale.shape)
        self._note(scale, zero_point)
        return self._round(weight, scale, zero_point, never_clips=scheme.covers_negative)

    def over_fixed(self, weight: Tensor) -> Tensor:
        """Return ``weight`` on the grid that stands; what lies outside is clipped."""
        scale, zero_point = (self.buffer(n, weight.device) for n in ("scale", "zero_point"))
        return self._round(weight, scale, zero_point)

    @torch.no_grad()
    def fix(self, scale: Tensor, zero_point: Tensor) -> None:
        """Let a weight's grid stand, whatever becomes of the weight.

        Args:
            scale: as :meth:`Scheme.parameters` gives it, finite and positive.
            zero_point: likewise; whole numbers.

        Raises:
            ValueError: of another shape than the grid's.
        """
        shape = self.scheme.scale_shape(self.wrapper.weight.shape)
        if scale.shape != shape or zero_point.shape != shape:
            given = f"{tuple(scale.shape)} and {tuple(zero_point.shape)}"
            raise ValueError(f"scale and zero point have shapes {given}, needed is {tuple(shape)}")
        if not bool((scale > 0).all() & scale.isfinite().all()):
            raise ValueError("a scale is not above 0 and finite")
        self.wrapper.set_attribute(f"{self.key}_scale", scale.float())
        self.wrapper.set_attribute(f"{self.key}_zero_point", zero_point.float().expand(shape))
        setattr(self.wrapper, self._fixed, True)

    def release(self) -> None:
        """Let the grid follow the weight again."""
        self.wrapper.__dict__.pop(self._fixed, None)

    @property
    def fixed(self) -> bool:
        """Whether the grid stands: see :meth:`fix`."""
        return self._fixed in self.wrapper.__dict__

    def nearest(self, weight: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        """Return ``weight`` rounded to a grid of this scheme that is not noted."""
        return self._round(weight, scale, zero_point)

    def spread(self, values: Tensor) -> Tensor:
        """Return scales, or zero points, of this scheme for each element of the weight."""
        weight = self.wrapper.weight
        arranged = self.scheme.arranged(weight.detach())
        return self.scheme.restored(values.expand(arranged.shape), weight.shape)

    def follow(self, tensor: Tensor, decay: float) -> None:
        """Move an activation's range towards that of ``tensor`` by ``1 - decay``.

        The first tensor sets the range (Jacob et al. 2018, section 3.1: exponential moving
        averages of the extremes). One without elements, or with NaN or infinity, moves nothing.
        """
        if not can_share(tensor):
            self._follow(tensor.detach(), decay)
        else:
            self._follow_shared(tensor, decay, self._shared())

    @torch.no_grad()
    def set_range(self, low: Tensor, high: Tensor) -> None:
        """Set an activation's range: finite numbers, float32 tensors without dimensions."""
        self.buffer("range", low.device).copy_(torch.stack((low, high)))
        setattr(self.wrapper, self._seen, True)
        self._note(*self.scheme.parameters(low, high))

    def over_range(self, tensor: Tensor, decay: float | None = None) -> Tensor:
        """Return ``tensor`` on the grid of the range; as it is while there is none, here or there.

        With ``decay``, the range follows ``tensor`` first; see :meth:`follow`. In a recomputed
        forward it does not: the range is that of the first one, and so is what is kept for
        backward.
        """
        scalars = self._shared() if can_share(tensor) else None
        extremes = None
        if decay is not None:
            follows = not is_recomputed()
            if scalars is not None:
                extremes = self._follow_shared(tensor, decay, scalars, follows=follows)
            elif follows:
                self._follow(tensor.detach(), decay)
        if not self.wrapper.__dict__[self._seen]:
            lent = self._of_origin()
            return tensor if lent is None else lent.over_range(tensor)
        if self.waits and not self._begins():
            return tensor
        if scalars is not None:
            return round_shared(tensor, scalars, self.scheme, extremes)
        scale, zero_point = (self.buffer(n, tensor.device) for n in ("scale", "zero_point"))
        return self._round(tensor, scale, zero_point)

    def buffer(self, name: str, device: torch.device) -> Tensor:
        """Return a buffer where it is needed: the model may have moved since it was made."""
        name = f"{self.key}_{name}"
        buffer: Any = self.wrapper._buffers[name]
        if buffer.device != device:
            buffer = self.wrapper._buffers[name] = buffer.to(device)
        return buffer  # type: ignore[no-any-return]

    def _of_origin(self) -> Grid | None:
        """Return the grid of the layer that this one was copied from, if that has a range.

        An average of a model, or another copy that is only evaluated, is quantized as the model is.
        """
        origin = self.wrapper.origin
        grid: Any = None if origin is None else origin.grids.get(self.key)
        return grid if grid is not None and grid.seen else None

    def _begins(self) -> bool:
        """Return whether a copy's delay is over; in the user's model its quantizer says so."""
        if self.delay.over(self.start, self, self.wrapper.module.training):
            self.waits = False
        return not self.waits

    def _follow_shared(
        self, tensor: Tensor, decay: float, scalars: Scalars, *, follows: bool = True
    ) -> tuple[float, float] | None:
        """Follow ``tensor``, if so, and return its extremes; None if none that are finite."""
        if not tensor.numel():
            return None
        floats = scalars.floats
        past_low, past_high = floats[LOW], floats[HIGH]
        torch.aminmax(tensor.detach(), out=scalars.tensors[LOW : HIGH + 1])
        low, high = floats[LOW], floats[HIGH]
        finite = low > -_INFINITY and high < _INFINITY  # NaN is neither
        if not (finite and follows):
            floats[LOW], floats[HIGH] = past_low, past_high
            return (low, high) if finite else None
        if past_low == past_low:  # not NaN
            floats[LOW] = past_low + (low - past_low) * (1 - decay)
            floats[HIGH] = past_high + (high - past_high) * (1 - decay)
        place(floats, self.scheme)
        self.wrapper.__dict__[self._seen] = True
        return low, high

    def _shared(self) -> Scalars:
        if not self._scalars.linked(self.wrapper):
            self._scalars.link(self.wrapper)
        return self._scalars

    def _factor(self, device: torch.device) -> Tensor:
        weight = self.wrapper.weight
        assert self.norm is not None
        axis = channels_of(self.wrapper.module, self.wrapper.name).axis
        view = [-1 if dim == axis else 1 for dim in range(weight.dim())]
        return channel_factor(self.norm).to(device).view(view)

    @torch.no_grad()
    def _follow(self, tensor: Tensor, decay: float) -> None:
        if not tensor.numel():
            return
        now = torch.stack(tensor.aminmax()).float()
        finite = now.isfinite().all()
        compiling = torch.compiler.is_compiling()
        if not (self.seen or compiling or bool(finite)):  # the device is waited for once
            return
        past = self.buffer("range", now.device)
        moved = now.where(past.isnan(), past.lerp(now, 1 - decay))
        if not _is_exporting():
            past.copy_(moved.where(finite, past))
        setattr(self.wrapper, self._seen, True)
        self._note(*self.scheme.parameters(past[0], past[1]))

    def _round(
        self, tensor: Tensor, scale: Tensor, zero_point: Tensor, *, never_clips: bool = False
    ) -> Tensor:
        scheme = self.scheme
        rounded = fake_quantize(
            scheme.arranged(tensor),
            scale,
            None if scheme.symmetric else zero_point,
            scheme.qmin,
            scheme.qmax,
            never_clips=never_clips,
        )
        return scheme.restored(rounded, tensor.shape)

    def _note(self, scale: Tensor, zero_point: Tensor) -> None:
        if _is_exporting():  # an exported graph may not change what it does not own
            return
        self.buffer("scale", scale.device).copy_(scale)
        self.buffer("zero_point", scale.device).copy_(zero_point)


def _is_exporting() -> bool:
    """Return whether ``torch.export`` makes a graph.

    The flag itself is asked: in PyTorch up to 2.11, ``torch.compiler.is_exporting()`` is true in
    whatever ``torch.compile`` traces, and compiled training would follow no range.
    """
    flag: bool | None = getattr(torch.compiler, "_is_exporting_flag", None)
    return torch.compiler.is_exporting() if flag is None else flag
