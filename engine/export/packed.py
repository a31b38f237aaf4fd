"""Quantized weights as integers of their own width, without the zeros that pruning left.

A weight of b bits takes b bits. Its values come back bit-exactly: they are stored as integers of
an affine grid ``scale * (q - zero_point)`` where that reproduces each value, else as indices into
the table of the values that occur. Where most are zero, one bit per weight says which are not, and
only those are stored.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from engine.errors import ExportError
from engine.quantization.affine import dequantize, quantize


class PackedWeight(NamedTuple):
    """One weight, packed.

    ``codes`` is a uint8 tensor of ``bits``-wide numbers, lowest bits first, crossing bytes;
    ``present`` one bit per weight, or None when all are stored; ``table`` the values that codes
    index, or None for an affine grid with ``scale`` and ``zero_point``.
    """

    shape: tuple[int, ...]
    dtype: str
    bits: int
    codes: Tensor
    present: Tensor | None
    table: Tensor | None
    scale: Tensor | None
    zero_point: Tensor | None
    qmin: int

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors together."""
        return sum(t.numel() * t.element_size() for t in self if isinstance(t, Tensor))


def pack(
    weight: Tensor,
    bits: int,
    scale: Tensor | None = None,
    zero_point: Tensor | None = None,
    qmin: int = 0,
) -> PackedWeight:
    """Return ``weight`` packed in ``bits`` bits per value.

    Args:
        weight: the fake-quantized weight, any shape and floating dtype.
        bits: width of a code, 1 to 16.
        scale: of the affine grid, broadcasts against ``weight``; None when there is none.
        zero_point: likewise.
        qmin: smallest integer of the grid.

    Raises:
        ExportError: ``weight`` has more than ``2**bits`` values.
    """
    weight = weight.detach().cpu()
    present = weight != 0
    kept = int(torch.count_nonzero(present))
    sparse = weight.numel() + kept * bits < weight.numel() * bits
    stored = weight[present] if sparse else weight
    table: Tensor | None = None
    codes = None
    if scale is not None and zero_point is not None:
        scale, zero_point = scale.detach().cpu().clone(), zero_point.detach().cpu().clone()
        integers = quantize(weight.to(scale.dtype), scale, zero_point, qmin, qmin + 2**bits - 1)
        back = dequantize(integers, scale, zero_point).to(weight.dtype)
        # A pruned weight is zero even where zero is not on the grid; sparse storage leaves it out.
        if torch.equal(back[present], stored) if sparse else torch.equal(back, stored):
            codes = (integers[present] if sparse else integers).flatten() - qmin
    if codes is None:
        scale = zero_point = None
        table, codes = torch.unique(stored, return_inverse=True)
        if table.numel() > 2**bits:
            raise ExportError(
                f"the weight has {table.numel()} different values, {bits} bits hold "
                f"{2**bits}: it is not quantized to {bits} bits"
            )
    return PackedWeight(
        tuple(weight.shape),
        str(weight.dtype).removeprefix("torch."),
        bits,
        _to_bits(codes.flatten().to(torch.int32), bits),
        _to_bits(present.flatten().to(torch.int32), 1) if sparse else None,
        table,
        scale,
        zero_point,
        qmin,
    )


def unpack(packed: PackedWeight) -> Tensor:
    """Return the weight that :func:`pack` was given, bit-exactly (-0.0 comes back as 0.0)."""
    dtype = getattr(torch, packed.dtype)
    total = torch.Size(packed.shape).numel()
    present = None
    count = total
    if packed.present is not None:
        present = _from_bits(packed.present, 1, total).bool()
        count = int(torch.count_nonzero(present))
    codes = _from_bits(packed.codes, packed.bits, count)
    if packed.table is not None:
        values = packed.table[codes.long()]
        if present is None:
            return values.view(packed.shape)
        return torch.zeros(total, dtype=dtype).masked_scatter(present, values).view(packed.shape)
    assert packed.scale is not None
    assert packed.zero_point is not None
    integers = codes + packed.qmin
    if present is not None:
        integers = torch.zeros(total, dtype=torch.int32).masked_scatter(present, integers)
    weight = dequantize(integers.view(packed.shape), packed.scale, packed.zero_point).to(dtype)
    return weight if present is None else weight.mul(present.view(packed.shape))


def to_plain(packed: PackedWeight) -> dict[str, Any]:
    """Return what ``torch.save`` writes for a packed weight: tensors and plain values."""
    return packed._asdict()


#: Codes handled at once, a multiple of 8 so that each chunk fills whole bytes.
_CHUNK = 1 << 20


def _to_bits(codes: Tensor, bits: int) -> Tensor:
    """Return non-negative ``codes`` (n,) as a uint8 stream of ``bits`` bits each."""
    shifts = torch.arange(bits, dtype=torch.int32)
    places = 2 ** torch.arange(8, dtype=torch.uint8)
    parts = [torch.empty(0, dtype=torch.uint8)]
    for chunk in codes.split(_CHUNK):
        stream = ((chunk[:, None] >> shifts) & 1).flatten().to(torch.uint8)
        octets = torch.nn.functional.pad(stream, (0, -stream.numel() % 8)).view(-1, 8)
        parts.append((octets * places).sum(dim=1, dtype=torch.uint8))
    return torch.cat(parts)


def _from_bits(stream: Tensor, bits: int, count: int) -> Tensor:
    """Return the ``count`` codes of ``bits`` bits in ``stream`` as int32 (count,)."""
    shifts = torch.arange(bits, dtype=torch.int32)
    parts = [torch.empty(0, dtype=torch.int32)]
    for octets in stream.split(_CHUNK // 8 * bits):
        ones = ((octets[:, None] >> torch.arange(8, dtype=torch.uint8)) & 1).flatten()
        held = ones[: ones.numel() // bits * bits].view(-1, bits).to(torch.int32)
        parts.append((held << shifts).sum(dim=1, dtype=torch.int32))
    return torch.cat(parts)[:count]
