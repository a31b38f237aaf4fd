"""What speedup did to each layer, and why it left what it left."""

from __future__ import annotations

from typing import NamedTuple


class LayerChange(NamedTuple):
    """One layer's weight before and after; ``kept`` says why masked channels stayed, if any did."""

    name: str
    type: str
    before: tuple[int, ...]
    after: tuple[int, ...]
    kept: str


class SpeedupReport(NamedTuple):
    """What became of a model.

    ``unknown`` names operators without a rule, with the module where each was met.
    """

    layers: tuple[LayerChange, ...]
    parameters_before: int
    parameters_after: int
    unknown: dict[str, str]

    @property
    def note(self) -> str:
        """What to do when nothing could be removed, empty when something was."""
        if self.parameters_after < self.parameters_before:
            return ""
        if any(layer.kept for layer in self.layers):
            return (
                "nothing was removed: every masked channel is still needed, see the reasons; "
                "masks that are made with dependency_aware agree between layers"
            )
        return (
            "nothing was removed: no filter or channel is zero as a whole\n"
            "  fine-grained masks (level) leave every channel in use; filter pruners such as "
            "l1_filter with dependency_aware remove whole channels"
        )

    def __str__(self) -> str:
        header = ("LAYER", "TYPE", "BEFORE", "AFTER", "KEPT BECAUSE")
        rows = [
            (
                layer.name,
                layer.type,
                "x".join(map(str, layer.before)),
                "x".join(map(str, layer.after)),
                layer.kept,
            )
            for layer in self.layers
        ]
        widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
        lines = [
            "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
            for row in [header, *rows]
        ]
        share = self.parameters_after / max(1, self.parameters_before)
        lines.append(
            f"parameters: {self.parameters_before:,} -> {self.parameters_after:,} ({share:.1%})"
        )
        if self.note:
            lines.append(self.note)
        if self.unknown:
            places = [f"{name} (in {path or 'the model'})" for name, path in self.unknown.items()]
            lines.append(f"operators without a rule, left as they are: {', '.join(places)}")
        return "\n".join(lines)
