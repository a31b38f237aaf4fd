"""One table, three forms: text for people, CSV and JSON for programs."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.files import PathLike, write_whole

WIDTH = 100
_LONGEST = 20
_UNITS = ("", "k", "M", "G", "T", "P", "E")


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]], texts: int) -> str:
    """Return aligned columns, two blanks apart, within 100 characters where that is possible.

    Args:
        header: the titles.
        rows: the cells.
        texts: how many columns, from the left, are text; numbers stand at the right of theirs. The
            first column is cut at its beginning where the table is too wide, the other texts at 20
            characters.
    """
    lines = [list(header), *([row[0], *map(_start, row[1:texts]), *row[texts:]] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    excess = sum(widths) + 2 * (len(widths) - 1) - WIDTH
    widths[0] = max(min(widths[0], 16), widths[0] - max(excess, 0))
    return "\n".join(
        "  ".join(
            _end(cell, width).ljust(width) if place < texts else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def short(count: float) -> str:
    """Return ``count`` in three or four digits: 9,408 stays, 11,689,512 is ``11.69M``."""
    if count < 10_000:
        return f"{count:,.0f}"
    place = min((len(str(int(count))) - 1) // 3, len(_UNITS) - 1)
    return f"{count / 1000**place:.4g}{_UNITS[place]}"


def shape_text(shape: Sequence[int]) -> str:
    """Return ``64x3x7x7``."""
    return "x".join(map(str, shape))


def write_csv(path: PathLike, rows: Sequence[Sequence[Any]]) -> Path:
    """Write rows, the header first, as CSV; the file is whole or not there."""

    def write(temporary: Path) -> None:
        with temporary.open("w", newline="", encoding="utf-8") as stream:
            csv.writer(stream).writerows(rows)

    return write_whole(path, write)


def write_table(path: PathLike, rows: Sequence[Mapping[str, Any]], facts: Any) -> Path:
    """Write a table: as JSON where the file's name ends in ``.json``, else as CSV.

    Args:
        path: the file.
        rows: all with the same keys, which are the CSV's header; shapes are written ``64x3x7x7``.
        facts: what the JSON file holds.

    Raises:
        ExportError: the file cannot be written.
    """
    if str(path).endswith(".json"):
        text = json.dumps(facts, indent=2) + "\n"
        return write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    header = list(rows[0]) if rows else []
    return write_csv(path, [header, *([_cell(row[key]) for key in header] for row in rows)])


def _cell(value: Any) -> Any:
    return shape_text(value) if isinstance(value, tuple | list) else value


def _start(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 2] + ".."


def _end(text: str, width: int) -> str:
    """Return ``text`` cut to fit at its beginning: the end of a layer's name tells it apart."""
    return text if len(text) <= width else ".." + text[len(text) - width + 2 :]
