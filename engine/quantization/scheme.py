"""How a tensor is put on integers: its bits, and what one scale and zero point are shared by."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from engine.attach.layout import STATED, Layout, scale_layout
from engine.attach.wrapper import Wrapper
from engine.errors import ConfigError, Problem
from engine.quantization.affine import affine_parameters
from engine.quantization.quant_types import QuantType, bits_of, of_type

#: Members of a group that share a scale, unless an entry says otherwise.
GROUP_SIZE = 32


@dataclass(frozen=True)
class Scheme:
    """The integers of a grid, and what one pair of scale and zero point is shared by.

    Attributes:
        bits: 1 to 16.
        symmetric: the zero point is 0.
        signed: whether integers may be negative. Affine: [-2^(b-1), 2^(b-1) - 1]; symmetric:
            [-(2^(b-1) - 1), 2^(b-1) - 1], so that a weight over its own extremes never clips.
            Unsigned: [0, 2^b - 1]; unsigned and symmetric is for what is never negative.
        axis: the axis of the weight's channels, each with a scale of its own; None: one scale.
        group_size: each so many consecutive weights of a channel have a scale of their own (the
            last group may be smaller); None: no groups.
        split: into how many groups a transposed convolution is divided, see :class:`Layout`.
        qmin: the smallest integer.
        qmax: the largest integer.
        covers_negative: whether a grid over a tensor's extremes holds its negative values, too.

    Raises:
        ValueError: the integers are none, or 0 alone; more than 16 bits.
    """

    bits: int
    symmetric: bool = False
    signed: bool = False
    axis: int | None = None
    group_size: int | None = None
    split: int = 1
    qmin: int = field(init=False, compare=False, repr=False)
    qmax: int = field(init=False, compare=False, repr=False)
    covers_negative: bool = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 16:
            raise ValueError(f"{self.bits} bits; 1 to 16 are possible")
        qmin = int(self.symmetric) - (1 << (self.bits - 1)) if self.signed else 0
        qmax = (1 << (self.bits - self.signed)) - 1
        if qmin == qmax:
            raise ValueError("signed and symmetric integers of 1 bit are 0 alone")
        # Once: they are read in every forward.
        object.__setattr__(self, "qmin", qmin)
        object.__setattr__(self, "qmax", qmax)
        object.__setattr__(self, "covers_negative", self.signed or not self.symmetric)

    @property
    def name(self) -> str:
        """The name in a configuration: ``per_channel_symmetric``."""
        shared = "tensor" if self.axis is None else "channel"
        shared = shared if self.group_size is None else "group"
        return f"per_{shared}_{'symmetric' if self.symmetric else 'affine'}"

    def arranged(self, tensor: Tensor) -> Tensor:
        """Return ``tensor`` so that scales of :meth:`extremes` broadcast against it.

        Groups: (channels, groups, group_size), the last group filled up with zeros, which every
        grid holds. Channels of a transposed convolution of several groups: (channels, elements).
        Otherwise ``tensor`` itself. A view wherever that is possible.
        """
        if self.axis is None or (self.group_size is None and self.split == 1):
            return tensor
        rows = Layout(self.axis, self.split).rows(tensor)
        if self.group_size is None:
            return rows
        missing = -rows.shape[1] % self.group_size
        rows = nn.functional.pad(rows, (0, missing)) if missing else rows
        return rows.reshape(rows.shape[0], -1, self.group_size)

    def restored(self, arranged: Tensor, shape: torch.Size) -> Tensor:
        """Return what :meth:`arranged` made of a tensor of ``shape`` in that shape again."""
        if self.axis is None or (self.group_size is None and self.split == 1):
            return arranged
        layout = Layout(self.axis, self.split)
        rows = arranged.flatten(1)[:, : shape.numel() // max(layout.count(shape), 1)]
        return layout.restored(rows, shape)

    def extremes(self, arranged: Tensor) -> tuple[Tensor, Tensor]:
        """Return the smallest and largest value that each scale is for, ready to broadcast.

        Shapes: () per tensor, (1, .., channels, .., 1) per channel, (channels, 1) of several groups
        of a transposed convolution, (channels, groups, 1) for groups.
        """
        if self.axis is None:
            return torch.aminmax(arranged)
        if self.group_size is not None:
            dims = [2]
        elif self.split > 1:
            dims = [1]
        else:
            dims = [dim for dim in range(arranged.dim()) if dim != self.axis]
            if not dims:
                return arranged, arranged
        # Two reductions, since aminmax along dimensions is fifteen times slower than both.
        return arranged.amin(dims, keepdim=True), arranged.amax(dims, keepdim=True)

    def parameters(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Return scale and zero point, float32, for a range; see :func:`affine_parameters`.

        Scales of groups are the next larger numbers of bfloat16: there are many of them, and so
        they are stored in half the bytes.
        """
        low, high = low.float(), high.float()
        if not self.covers_negative:
            low = torch.zeros_like(low)
        symmetric = self.symmetric and self.covers_negative
        scale, zero_point = affine_parameters(low, high, self.qmin, self.qmax, symmetric=symmetric)
        if self.group_size is None:
            return scale, zero_point
        coarse = next_bfloat16(scale)
        if not symmetric:
            moved = (self.qmin - low.clamp(max=0) / coarse).round_().clamp_(self.qmin, self.qmax)
            zero_point = moved.where(moved.isfinite(), zero_point)
        return coarse, zero_point

    def round_over_extremes(self, tensor: Tensor) -> Tensor:
        """Return ``tensor``, not a weight, on the grid over its own extremes."""
        scale, zero_point = self.parameters(*torch.aminmax(tensor))
        q = (tensor / scale).round_().add_(zero_point).clamp_(self.qmin, self.qmax)
        return q.sub_(zero_point).mul_(scale)

    def scale_shape(self, shape: torch.Size) -> torch.Size:
        """Return the shape of :meth:`extremes` for a tensor of ``shape``."""
        if self.axis is None:
            return torch.Size()
        channels = Layout(self.axis, self.split).count(shape)
        if self.group_size is not None:
            groups = -(-(shape.numel() // max(channels, 1)) // self.group_size)
            return torch.Size([channels, groups, 1])
        if self.split > 1:
            return torch.Size([channels, 1])
        return torch.Size([channels if dim == self.axis else 1 for dim in range(len(shape))])


def next_bfloat16(scale: Tensor) -> Tensor:
    """Return the least number of bfloat16 that is no smaller, as float32.

    Args:
        scale: float32, positive and finite, any shape; one beyond bfloat16's largest is kept.
    """
    rounded = scale.to(torch.bfloat16)
    above = torch.where(rounded.float() < scale, _following(rounded), rounded).float()
    return above.where(above.isfinite(), scale)


def _following(value: Tensor) -> Tensor:
    """Return the next larger bfloat16 of positive ones: their bits count upwards."""
    return (value.view(torch.int16) + 1).view(torch.bfloat16)


def channels_of(module: nn.Module, name: str) -> Layout:
    """Return what of the weight of ``module`` has scales of its own.

    Raises:
        ConfigError: nobody knows; the layer is named.
    """
    layout = scale_layout(module)
    if layout is not None:
        return layout
    problem = Problem(
        f'layer "{name}" is a {type(module).__name__}, and where its weight\'s output channels are '
        "is not known: they cannot have scales of their own",
        "/config_list",
        allowed='needs: "quant_scheme": {"weight": "per_tensor_symmetric"} or "per_tensor_affine"; '
        f"or an attribute {STATED} = 0 (or 1, ...) of its class",
    )
    raise ConfigError([problem])


def scheme_of(
    wrapper: Wrapper, quant_type: QuantType, default: str = "per_tensor_affine"
) -> Scheme:
    """Return the scheme that the layer's entry gives ``quant_type``.

    ``quant_scheme`` is ``per_{tensor,channel,group}_{affine,symmetric}``. Channels and groups are a
    weight's: what is said for all of a layer's tensors gives activations one scale in any case.
    ``quant_dtype`` is ``int`` or ``uint``; without it, symmetric is ``int`` and affine ``uint``.

    Raises:
        ConfigError: the bits leave no integers, or channels are to have scales and nobody knows
            where the weight has them; the layer is named.
    """
    text = str(of_type(wrapper.config.get("quant_scheme"), quant_type) or default)
    symmetric = text.endswith("symmetric")
    dtype = of_type(wrapper.config.get("quant_dtype"), quant_type)
    layout = None
    if quant_type == QuantType.WEIGHT and not text.startswith("per_tensor"):
        layout = channels_of(wrapper.module, wrapper.name)
    size = int(wrapper.config.get("quant_group_size") or GROUP_SIZE)
    grouped = layout is not None and text.startswith("per_group")
    try:
        return Scheme(
            bits_of(wrapper, quant_type),
            symmetric,
            symmetric if dtype is None else dtype == "int",
            None if layout is None else layout.axis,
            size if grouped else None,
            1 if layout is None else layout.groups,
        )
    except ValueError as error:
        problem = Problem(
            f'the {quant_type.key} of layer "{wrapper.name}": {error}',
            "/config_list",
            allowed="needs: 1 to 16 bits, at least 2 where they are symmetric and int",
        )
        raise ConfigError([problem]) from error
