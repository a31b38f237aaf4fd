"""The weight scale of each channel of an integer layer, such that a grid of sums holds its bias.

A bias is an integer of 32 bits whose step is the product of the weight's and the input's. That step
follows from the weights alone, which says nothing of the bias: where all weights of a channel are
0 any scale is theirs, where they are next to nothing the bias overflows, and where one scale serves
all channels a small channel has the step of the largest.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

#: A bias and a sum of products fit into 32 bits together.
LARGEST = 2**30
#: Of the output's step: rounding a bias to this one moves the output by a thirty-second of a step.
_FINE = 1 / 16
#: Half of a step is what the output is rounded by itself, and a bias at most.
_COARSEST = 1.0
#: Sums of any length that are counted in this do not reach half of the output's step.
_NOTHING = 2.0**-32
_TINY = torch.finfo(torch.float32).tiny


class FittedScale(NamedTuple):
    """Scales of a weight's channels, and whether a bias fits with them.

    Attributes:
        scale: float32 (channels,).
        values: the weight's integers on these scales, in its own dtype and shape.
        changed: whether any scale is another.
        fits: whether each channel's bias is rounded by half of the output's step at most.
    """

    scale: Tensor
    values: Tensor
    changed: bool
    fits: bool


def fitted(
    values: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    limits: tuple[int, int],
    bias: Tensor,
    source: float,
    output: float,
) -> FittedScale:
    """Return the weight on scales with which ``scale * source`` is a grid for ``bias``.

    A scale is lowered by a power of two as far as the integers have room, which changes no value; a
    channel of nothing but zeros takes whatever suits its bias. A scale is raised, and integers are
    rounded, where a bias would take more than 30 bits, or sums never reach a step of the output:
    such weights are next to nothing.

    Args:
        values: integers of 8 bits, output channels along dimension 0; unchanged.
        scale: float32 (channels,), positive.
        zero_point: whole numbers (channels,).
        limits: the smallest and the largest integer of the values' type.
        bias: float (channels,), finite.
        source: the step of the layer's input.
        output: the step of what it writes.
    """
    scale, bias = scale.double(), bias.detach().abs().double()
    zeros = zero_point.double()
    distance = values.double().flatten(1) - zeros[:, None]
    if not distance.shape[1]:
        return FittedScale(scale.float(), values, False, True)
    step = scale * source
    least = (bias / LARGEST).clamp_(min=max(output * _NOTHING, _TINY))
    above = torch.where(distance.amax(1) > 0, (limits[1] - zeros) / distance.amax(1), torch.inf)
    below = torch.where(distance.amin(1) < 0, (limits[0] - zeros) / distance.amin(1), torch.inf)
    room = torch.minimum(above, below)
    wanted = (step / (output * _FINE)).clamp(min=1)
    allowed = torch.minimum(room, step / least).clamp(min=1)
    # Powers of two; a channel of zeros has room for any.
    lowered = 2.0 ** torch.minimum(wanted.log2().ceil(), allowed.log2().floor())
    suited = torch.where(step < least, least / source, scale / lowered).float()
    changed = suited != scale.float()
    suited = torch.where(changed, suited, scale.float())
    ratio = torch.where(changed, scale / suited.double(), 1.0)
    integers = (distance * ratio[:, None]).round_() + zeros[:, None]
    fits = suited.double() * source <= torch.maximum(
        least * 1.0001, torch.tensor(output) * _COARSEST
    )
    return FittedScale(
        suited,
        integers.clamp_(*limits).to(values.dtype).view_as(values),
        bool(changed.any()),
        bool(fits.all()),
    )
