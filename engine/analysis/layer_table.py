"""What became of each layer: the table at the end of a run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from engine.attach.compressor import Compressor
from engine.attach.computed import Stage, without_stage
from engine.attach.parametrized import only_looking, own_weight, source_of
from engine.export.packed_file import packed_weights
from engine.quantization.quant_types import QuantType, bits_of, quant_types_of
from engine.quantization.quantizer import Quantizer

_ACTIVATIONS = (QuantType.INPUT, QuantType.OUTPUT)


class LayerRow(NamedTuple):
    """One layer. Weights are counted, bytes are those of the weight as it would be exported."""

    name: str
    type: str
    shape: tuple[int, ...]
    kept: int
    total: int
    weight_bits: int
    activation_bits: int
    bytes_before: int
    bytes_after: int


class LayerTable(NamedTuple):
    """Rows in the model's order; ``print`` it, or read its fields.

    ``other_bytes`` is everything that is no layer's weight: biases, norms, buffers.
    """

    rows: tuple[LayerRow, ...]
    other_bytes: int

    @property
    def bytes_before(self) -> int:
        """Bytes of the model's state before compression."""
        return sum(row.bytes_before for row in self.rows) + self.other_bytes

    @property
    def bytes_after(self) -> int:
        """Bytes of the model's state as exported."""
        return sum(row.bytes_after for row in self.rows) + self.other_bytes

    def as_dicts(self) -> list[dict[str, Any]]:
        """Return the rows as plain values, for JSON or CSV."""
        return [row._asdict() for row in self.rows]

    def __str__(self) -> str:
        in_thousands = self.bytes_before >= _MANY
        lines = [_header(in_thousands), *(_cells(row, in_thousands) for row in self.rows)]
        lines.append(self._total(in_thousands))
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        for column, least in _SHORTENED:
            excess = sum(widths) + 2 * (len(widths) - 1) - _WIDTH
            widths[column] = max(min(widths[column], least), widths[column] - max(excess, 0))
        return "\n".join(
            "  ".join(
                _short(cell, width).ljust(width) if place < _TEXT_COLUMNS else cell.rjust(width)
                for place, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        )

    def _total(self, in_thousands: bool) -> tuple[str, ...]:
        kept, total = sum(r.kept for r in self.rows), sum(r.total for r in self.rows)
        return (
            "total",
            "",
            "",
            f"{kept:,}/{total:,}",
            _percent(kept, total),
            "",
            _size(self.bytes_before, in_thousands),
            _size(self.bytes_after, in_thousands),
        )


_TEXT_COLUMNS = 3
_WIDTH = 100
#: Columns that give way in a line too long, and what they keep: TYPE first, then LAYER, SHAPE.
_SHORTENED = ((1, 8), (0, 16), (2, 9))
#: From so many bytes on the table counts in kB, of 1,000 bytes.
_MANY = 1_000_000


def layer_table(model: nn.Module, *compressors: Compressor) -> LayerTable:
    """Return one row per layer with a weight, as ``compressors`` have left it.

    A quantized weight counts the bytes of its packed integers, zeros that pruning left taken out;
    a weight that is only masked still counts in full, since a mask alone makes no file smaller.

    Args:
        model: the model, compressors attached.
        *compressors: those whose settings the table shows.

    Raises:
        ExportError: a quantized weight is not on its grid.
    """
    packed: dict[str, int] = {}
    bits: dict[str, tuple[int | None, int | None]] = {}
    for compressor in compressors:
        if isinstance(compressor, Quantizer):
            stored = packed_weights(compressor.wrappers)
            packed.update((key, integers.nbytes) for key, integers in stored.items())
            for wrapper in compressor.wrappers:
                kinds = quant_types_of(wrapper)
                activations = [bits_of(wrapper, kind) for kind in _ACTIVATIONS if kind in kinds]
                of_weight = (
                    bits_of(wrapper, QuantType.WEIGHT) if QuantType.WEIGHT in kinds else None
                )
                bits[wrapper.name] = (of_weight, min(activations, default=None))
    rows = []
    for name, module in _weighted(model):
        weight = own_weight(module)
        assert weight is not None
        # What rounds to zero is not pruned.
        with torch.no_grad(), without_stage(module, Stage.QUANTIZE), only_looking(module):
            value = module.weight
        size = weight.numel() * weight.element_size()
        full = weight.element_size() * 8
        weight_bits, activation_bits = bits.get(name, (None, None))
        rows.append(
            LayerRow(
                name,
                type(module).__name__,
                tuple(weight.shape),
                int(torch.count_nonzero(value)),  # type: ignore[arg-type]
                weight.numel(),
                weight_bits or full,
                activation_bits or full,
                size,
                packed.get(f"{name}.weight" if name else "weight", size),
            )
        )
    tensors = {t.data_ptr(): t for t in model.state_dict().values() if isinstance(t, Tensor)}
    everything = sum(t.numel() * t.element_size() for t in tensors.values())
    return LayerTable(tuple(rows), everything - sum(row.bytes_before for row in rows))


def _weighted(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield each layer with a weight; a weight that layers share stands at the first of them."""
    seen: set[int] = set()
    for name, module in model.named_modules():
        source = source_of(module)
        if source is not None and id(source) not in seen:
            seen.add(id(source))
            yield name, module


def _header(in_thousands: bool) -> tuple[str, ...]:
    unit = "kB" if in_thousands else "BYTES"
    return ("LAYER", "TYPE", "SHAPE", "KEPT/TOTAL", "PRUNED", "BITS W/A", unit, "NOW")


def _cells(row: LayerRow, in_thousands: bool) -> tuple[str, ...]:
    return (
        row.name,
        row.type,
        "x".join(map(str, row.shape)),
        f"{row.kept:,}/{row.total:,}",
        _percent(row.kept, row.total),
        f"{row.weight_bits}/{row.activation_bits}",
        _size(row.bytes_before, in_thousands),
        _size(row.bytes_after, in_thousands),
    )


def _size(count: int, in_thousands: bool) -> str:
    return f"{count / 1000:,.1f}" if in_thousands else f"{count:,}"


def _short(text: str, width: int) -> str:
    """Return ``text``, its beginning cut to fit: the end of a layer's name tells it apart."""
    return text if len(text) <= width else ".." + text[len(text) - width + 2 :]


def _percent(kept: int, total: int) -> str:
    return f"{100 * (1 - kept / total):.1f}%" if total else "-"
