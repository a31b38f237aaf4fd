"""Quantized weights as integers of their own width, without the zeros that pruning left.

A weight of b bits takes b bits. Its values come back bit-exactly: they are stored as integers of
an affine grid ``scale * (q - zero_point)`` where that reproduces each value, else as indices into
the table of the values that occur. Where most are zero, one bit per weight says which are not, and
only those are stored; so too where pruning left zeros that a full grid has no code for.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from engine.errors import ExportError
from engine.quantization.affine import dequantize, quantize
from engine.quantization.form import AffineForm


class PackedWeight(NamedTuple):
    """One weight, packed.

    ``codes`` is a uint8 tensor of ``bits``-wide numbers, lowest bits first, crossing bytes;
    ``present`` one bit per weight, or None when all are stored; ``table`` the values that codes
    index, or None for an affine grid with ``scale`` and ``zero_point``. ``group`` is the axis of
    channels and the number of consecutive weights that share a scale, and of a transposed
    convolution of several groups how many; scales then are (channels, groups).
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
    group: tuple[int, ...] | None = None

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
    group: tuple[int, ...] | None = None,
) -> PackedWeight:
    """Return ``weight`` packed in ``bits`` bits per value.

    Args:
        weight: the fake-quantized weight, any shape and floating dtype.
        bits: width of a code, 1 to 16.
        scale: of the affine grid, broadcasts against ``weight``; None when there is none.
        zero_point: likewise.
        qmin: smallest integer of the grid.
        group: axis of channels and size of the groups that share a scale, maybe the groups of a
            transposed convolution; scale and zero point then are (channels, groups).

    Raises:
        ExportError: ``weight`` has more than ``2**bits`` values beside zero, or NaN.
    """
    weight = weight.detach().cpu() + 0.0  # without -0.0
    present = weight != 0
    count = weight.numel()
    kept = int(torch.count_nonzero(present))
    everything = torch.ones_like(present)
    grid = None
    if scale is not None and zero_point is not None:
        grid = _halved(scale.detach().cpu()), _small(zero_point.detach().cpu())
    whole = _whole(grid, weight.shape, qmin, bits, group)
    plans = [(everything, count * bits), (present, count + kept * bits)]
    for stored, _ in sorted(plans, key=lambda plan: plan[1]):
        codes, table = _codes(weight, stored, bits, whole, qmin)
        if codes is None:
            continue
        return PackedWeight(
            tuple(weight.shape),
            str(weight.dtype).removeprefix("torch."),
            bits,
            _to_bits(codes.flatten().to(torch.int32), bits),
            _to_bits(present.flatten().to(torch.int32), 1) if stored is present else None,
            table,
            grid[0] if grid is not None and table is None else None,
            grid[1] if grid is not None and table is None else None,
            qmin,
            group if table is None else None,
        )
    if bool(weight.isnan().any()):
        raise ExportError("the weight holds NaN")
    values = torch.unique(weight[present]).numel()
    raise ExportError(
        f"the weight has {values} different values beside zero, {bits} bits hold {2**bits}: it "
        f"is not quantized to {bits} bits"
    )


def unpack(packed: PackedWeight) -> Tensor:
    """Return the weight that :func:`pack` was given, bit-exactly (-0.0 comes back as 0.0).

    Raises:
        ValueError: the parts do not belong together.
    """
    dtype = getattr(torch, packed.dtype, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"{packed.dtype!r} is no floating-point dtype")
    if not 1 <= packed.bits <= 16:
        raise ValueError(f"codes of {packed.bits} bits")
    shape = torch.Size(packed.shape)
    # Codes first: only a stream of their length lets anything of the shape's size be made.
    if packed.present is None:
        codes = _from_bits(packed.codes, packed.bits, shape.numel())
        stored = torch.ones(shape, dtype=torch.bool)
    else:
        stored = _from_bits(packed.present, 1, shape.numel()).bool().view(shape)
        codes = _from_bits(packed.codes, packed.bits, int(torch.count_nonzero(stored)))
    weight = torch.zeros(shape, dtype=dtype)
    if packed.table is not None:
        weight[stored] = packed.table[codes.long()]
        return weight
    if packed.scale is None or packed.zero_point is None:
        raise ValueError("neither a table nor a grid")
    integers = torch.zeros(shape, dtype=torch.int32)
    integers[stored] = codes + packed.qmin
    grid = packed.scale, packed.zero_point
    whole = _whole(grid, shape, packed.qmin, packed.bits, packed.group)
    assert whole is not None
    return weight.where(~stored, _on_grid(integers, *whole, dtype))


def _whole(
    grid: tuple[Tensor, Tensor] | None,
    shape: torch.Size,
    qmin: int,
    bits: int,
    group: tuple[int, ...] | None,
) -> tuple[Tensor, Tensor] | None:
    """Return ``grid`` so that it broadcasts against a weight of ``shape``."""
    if grid is None:
        return grid
    scale, zero_point = grid
    scale = scale.float() if scale.dtype == torch.bfloat16 else scale
    zero_point = zero_point.to(scale.dtype)
    if group is None:
        return scale, zero_point
    expanded = zero_point.expand_as(scale)
    axis, size, *split = group
    form = AffineForm(scale, expanded, qmin, qmin + 2**bits - 1, axis, size, *split)
    return form.broadcast(shape)


def _halved(scale: Tensor) -> Tensor:
    """Return ``scale`` as bfloat16 where there are many and nothing is lost by it, else a copy."""
    short = scale.to(torch.bfloat16)
    many = scale.numel() > 1 and scale.dtype == torch.float32
    return short if many and torch.equal(short.float(), scale) else scale.clone()


def _small(zero_point: Tensor) -> Tensor:
    """Return whole zero points in few bytes: one where all are equal, else in 8 bits if they fit.

    One of each group would take as much as the scales do.
    """
    if not zero_point.numel() or bool((zero_point == zero_point.flatten()[0]).all()):
        return zero_point.flatten()[:1].reshape(()).clone() if zero_point.numel() else zero_point
    for dtype in (torch.uint8, torch.int8):
        if torch.equal(zero_point.to(dtype).to(zero_point.dtype), zero_point):
            return zero_point.to(dtype)
    return zero_point.clone()


def to_plain(packed: PackedWeight) -> dict[str, Any]:
    """Return what ``torch.save`` writes for a packed weight: tensors and plain values."""
    return packed._asdict()


def _codes(
    weight: Tensor, stored: Tensor, bits: int, grid: tuple[Tensor, Tensor] | None, qmin: int
) -> tuple[Tensor | None, Tensor | None]:
    """Return a code for each stored weight and the table they index; no codes if bits are few."""
    values = weight[stored]
    if grid is not None:
        integers = quantize(weight, *grid, qmin, qmin + 2**bits - 1)
        if torch.equal(_on_grid(integers, *grid, weight.dtype)[stored], values):
            return integers[stored] - qmin, None
    table, codes = torch.unique(values, return_inverse=True)
    fits = table.numel() <= 2**bits and not bool(table.isnan().any())
    return (codes, table) if fits else (None, None)


def _on_grid(integers: Tensor, scale: Tensor, zero_point: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the values of ``integers``, computed as fake quantization of ``dtype`` does."""
    computed_in = torch.promote_types(scale.dtype, dtype)
    return dequantize(integers, scale.to(computed_in), zero_point).to(dtype)


#: Codes handled at once, a multiple of 8 so that each chunk fills whole bytes.
_CHUNK = 1 << 20


def _to_bits(codes: Tensor, bits: int) -> Tensor:
    """Return non-negative ``codes`` (n,) as a uint8 stream of ``bits`` bits each."""
    shifts = torch.arange(bits, dtype=torch.int32)
    places = 2 ** torch.arange(8, dtype=torch.uint8)
    parts = [torch.empty(0, dtype=torch.uint8)]
    for chunk in codes.split(_CHUNK):
        if 8 % bits == 0:  # no code crosses bytes
            each = torch.nn.functional.pad(chunk.to(torch.uint8), (0, -len(chunk) % (8 // bits)))
            columns = each.view(-1, 8 // bits)
            octets = columns[:, 0].clone()
            for place in range(1, 8 // bits):
                octets |= columns[:, place] << place * bits
            parts.append(octets)
            continue
        stream = ((chunk[:, None] >> shifts) & 1).flatten().to(torch.uint8)
        octets = torch.nn.functional.pad(stream, (0, -stream.numel() % 8)).view(-1, 8)
        parts.append((octets * places).sum(dim=1, dtype=torch.uint8))
    return torch.cat(parts)


def _from_bits(stream: Tensor, bits: int, count: int) -> Tensor:
    """Return the ``count`` codes of ``bits`` bits in ``stream`` as int32 (count,).

    Raises:
        ValueError: the stream has another length than these codes.
    """
    if stream.dtype != torch.uint8 or stream.shape != (-(-count * bits // 8),):
        raise ValueError(f"{stream.numel()} bytes do not hold {count} codes of {bits} bits")
    shifts = torch.arange(bits, dtype=torch.int32)
    parts = [torch.empty(0, dtype=torch.int32)]
    for octets in stream.split(_CHUNK // 8 * bits):
        if 8 % bits == 0:
            each = torch.empty(len(octets), 8 // bits, dtype=torch.int32)
            for place in range(8 // bits):
                each[:, place] = octets >> place * bits & 2**bits - 1
            parts.append(each.flatten())
            continue
        ones = ((octets[:, None] >> torch.arange(8, dtype=torch.uint8)) & 1).flatten()
        held = ones[: ones.numel() // bits * bits].view(-1, bits).to(torch.int32)
        parts.append((held << shifts).sum(dim=1, dtype=torch.int32))
    return torch.cat(parts)[:count]
