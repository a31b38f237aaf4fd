"""GGUF's types of integers: blocks of 32 weights with a scale in half precision."""

from __future__ import annotations

import torch
from torch import Tensor

from engine.export import SourceLayer
from engine.quantization import AffineForm

#: Weights that share a scale in the file.
BLOCK = 32
#: Relative difference that rounding a scale to half precision makes, subnormal ones excluded.
_HALF = 2.0**-11
#: By bits: GGUF's name of the type, and the bytes of a block.
TYPES = {4: ("Q4_0", 2 + BLOCK // 2), 8: ("Q8_0", 2 + BLOCK)}


def unfit(layer: SourceLayer) -> str | None:
    """Return why a layer's weight cannot lie in blocks; None where it can."""
    columns, size = layer.shape[1], layer.facts.group_size
    if columns % BLOCK:
        return f"has {columns} inputs, which blocks of {BLOCK} do not divide"
    if size is not None and size % BLOCK:
        return f"its groups are of {size} weights; multiples of {BLOCK} can be held"
    if layer.facts.half > _HALF:
        return "has scales that half precision does not hold, below 6e-5 or above 65504"
    return None


def scales(form: AffineForm, shape: torch.Size) -> Tensor:
    """Return the scale of each block, float16 (rows, blocks)."""
    rows, columns = shape
    scale = form.scale.expand(rows) if form.scale.dim() == 0 else form.scale
    by_group = scale.reshape(rows, -1)
    each = columns // BLOCK if form.group_size is None else form.group_size // BLOCK
    return by_group.repeat_interleave(each, 1)[:, : columns // BLOCK].half().cpu()


def blocks(integers: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Return the bytes of a weight, uint8 (rows, blocks * bytes of one).

    A block is its scale and 32 integers: of 8 bits one after the other; of 4 bits counted from -8,
    those of the first half in the low and those of the second half in the high bits.

    Args:
        integers: int32 (rows, columns), around 0.
        scale: of :func:`scales`.
        bits: 4 or 8.
    """
    parts = integers.cpu().unflatten(1, (-1, BLOCK))
    if bits == 8:
        body = parts.to(torch.int8).view(torch.uint8)
    else:
        codes = (parts + 8).to(torch.uint8)
        body = codes[..., : BLOCK // 2] | (codes[..., BLOCK // 2 :] << 4)
    head = scale.contiguous().unsqueeze(-1).view(torch.uint8)
    return torch.cat((head, body), dim=-1).flatten(1)
