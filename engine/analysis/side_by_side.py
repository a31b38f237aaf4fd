"""The table at the end of a run: each layer dense, masked and made smaller."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from engine.files import PathLike
from engine.files.table import WIDTH, shape_text, short, text_table, write_table
from engine.pruning.costs.count import CONVENTION, LayerCount, ModelCount
from engine.speedup import SpeedupReport


class LayerRow(NamedTuple):
    """One layer: ``before`` it was made smaller and ``after``.

    Shapes are those of the weight; ``nonzero_params`` and ``masked_flops`` leave out zeros in the
    model before; ``kept`` says why masked channels stayed, if any did.
    """

    name: str
    type: str
    before: tuple[int, ...]
    after: tuple[int, ...]
    params: int
    nonzero_params: int
    params_after: int
    flops: int
    masked_flops: int
    flops_after: int
    kept: str


_SUMMED = LayerRow._fields[4:10]


class SpeedupTable(NamedTuple):
    """Rows in the model's order; ``print`` it, or read its fields."""

    layers: tuple[LayerRow, ...]

    @property
    def totals(self) -> dict[str, int]:
        """The sums of the counts over all layers."""
        return {name: sum(getattr(layer, name) for layer in self.layers) for name in _SUMMED}

    def rows(self) -> list[dict[str, Any]]:
        """Return the layers as plain values."""
        return [layer._asdict() for layer in self.layers]

    def as_dict(self) -> dict[str, Any]:
        """Return totals and layers as plain values, for JSON."""
        return {"convention": CONVENTION, **self.totals, "layers": self.rows()}

    def export(self, path: PathLike) -> None:
        """Write the layers as CSV, or everything as JSON where ``path`` ends in ``.json``."""
        write_table(path, self.rows(), self.as_dict())

    def __str__(self) -> str:
        titles = ("PARAMS", "NONZERO", "AFTER", "FLOPS", "NONZERO", "AFTER")
        rows = [
            (
                layer.name or "(model)",
                shape_text(layer.before) or "-",
                shape_text(layer.after) or "-",
                *(short(getattr(layer, name)) for name in _SUMMED),
            )
            for layer in self.layers
        ]
        rows.append(("total", "", "", *map(short, self.totals.values())))
        rows.append(("", "", "", *self._shares()))
        lines = [text_table(("LAYER", "BEFORE", "AFTER", *titles), rows, 3), CONVENTION]
        kept = [layer for layer in self.layers if layer.kept]
        if kept:
            lines.append("masked channels that were kept:")
            lines += [f"  {layer.name}: {layer.kept}"[: 2 * WIDTH] for layer in kept]
        return "\n".join(lines)

    def _shares(self) -> list[str]:
        totals = list(self.totals.values())
        dense = [max(totals[place - place % 3], 1) for place in range(len(totals))]
        return [f"{count / whole:.1%}" for count, whole in zip(totals, dense, strict=True)]


def speedup_table(
    before: ModelCount, after: ModelCount, report: SpeedupReport | None = None
) -> SpeedupTable:
    """Return what became of each layer.

    Layers are matched by name; one that is on one side only has zeros on the other.

    Args:
        before: ``count_flops_params`` of the masked model.
        after: the same, on the same example, after ``apply_speedup``.
        report: the pruner's ``speedup_report``, for the reasons.
    """
    reasons = {change.name: change.kept for change in report.layers} if report is not None else {}
    old = {layer.name: layer for layer in before.layers}
    new = {layer.name: layer for layer in after.layers}
    return SpeedupTable(
        tuple(_row(name, old, new, reasons.get(name, "")) for name in dict.fromkeys([*old, *new]))
    )


def _row(
    name: str, old: Mapping[str, LayerCount], new: Mapping[str, LayerCount], kept: str
) -> LayerRow:
    absent = LayerCount(name, "", (), (), 0, 0, 0, 0, 0)
    was, now = old.get(name, absent), new.get(name, absent)
    return LayerRow(
        name,
        was.type or now.type,
        was.weight_shape,
        now.weight_shape,
        was.params,
        was.nonzero_params,
        now.params,
        was.flops,
        was.masked_flops,
        now.flops,
        kept,
    )
