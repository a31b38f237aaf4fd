"""Plain tables: sorted by their maker, without boxes, within 100 characters."""

from __future__ import annotations

from collections.abc import Sequence

WIDTH = 100
_GAP = "  "


def table(header: Sequence[str], rows: Sequence[Sequence[str]], limits: Sequence[int]) -> str:
    """Return aligned columns; a cell longer than its limit is cut, the last column to fit."""
    lines = [list(map(_cut, row, limits)) for row in [header, *rows]]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    room = WIDTH - sum(widths[:-1]) - len(_GAP) * (len(widths) - 1)
    result = []
    for line in lines:
        cells = [cell.ljust(width) for cell, width in zip(line, widths[:-1], strict=False)]
        result.append(_GAP.join([*cells, _cut(line[-1], room)]).rstrip())
    return "\n".join(result)


def _cut(text: str, limit: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: max(limit - 3, 0)] + "..."
