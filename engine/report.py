"""What became of each layer: the table at the end of a run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import nn

from engine.compressor import Compressor
from engine.export.compressed import packed_weights
from engine.quantizer import QuantType, Quantizer, bits_of, quant_types_of

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
        lines = [_HEADER, *map(_cells, self.rows), self._total()]
        widths = [max(len(line[i]) for line in lines) for i in range(len(_HEADER))]
        return "\n".join(
            "  ".join(
                cell.ljust(width) if place < _TEXT_COLUMNS else cell.rjust(width)
                for place, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        )

    def _total(self) -> tuple[str, ...]:
        kept, total = sum(r.kept for r in self.rows), sum(r.total for r in self.rows)
        return (
            "total",
            "",
            "",
            f"{kept:,}/{total:,}",
            _percent(kept, total),
            "",
            "",
            f"{self.bytes_before:,}",
            f"{self.bytes_after:,}",
        )


_HEADER = ("LAYER", "TYPE", "SHAPE", "KEPT/TOTAL", "PRUNED", "W BITS", "A BITS", "BYTES", "NOW")
_TEXT_COLUMNS = 3


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
            packed.update((key, weight.nbytes) for key, weight in stored.items())
            for wrapper in compressor.wrappers:
                kinds = quant_types_of(wrapper)
                activations = [bits_of(wrapper, kind) for kind in _ACTIVATIONS if kind in kinds]
                weight_bits = QuantType.WEIGHT in kinds and bits_of(wrapper, QuantType.WEIGHT)
                bits[wrapper.name] = (weight_bits or None, min(activations, default=None))
    rows = []
    for name, module in _weighted(model):
        weight = module._parameters["weight"]
        assert weight is not None
        with torch.no_grad():
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
    state = model.state_dict()
    everything = sum(t.numel() * t.element_size() for t in state.values())
    return LayerTable(tuple(rows), everything - sum(row.bytes_before for row in rows))


def _weighted(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in model.named_modules():
        if module._parameters.get("weight") is not None:
            yield name, module


def _cells(row: LayerRow) -> tuple[str, ...]:
    return (
        row.name,
        row.type,
        "x".join(map(str, row.shape)),
        f"{row.kept:,}/{row.total:,}",
        _percent(row.kept, row.total),
        str(row.weight_bits),
        str(row.activation_bits),
        f"{row.bytes_before:,}",
        f"{row.bytes_after:,}",
    )


def _percent(kept: int, total: int) -> str:
    return f"{100 * (1 - kept / total):.1f}%" if total else "-"
