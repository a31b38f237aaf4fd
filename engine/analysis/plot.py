"""Line charts as files, through matplotlib; needs the extra ``engine[plot]``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from engine.errors import ExportError
from engine.files import PathLike, write_whole

_FORMATS = ("png", "svg", "pdf")
_LEGEND_ROWS = 24
_MARKERS = "os^vDxP*"


def plot_lines(
    path: PathLike,
    lines: Mapping[str, Mapping[float, float]],
    base: float | None,
    title: str,
    x_label: str,
    y_label: str,
) -> None:
    """Draw one line per name; ``base`` is drawn as a dashed level.

    Args:
        path: a file whose name ends in ``.png``, ``.svg`` or ``.pdf``.
        lines: y by x, by name.
        base: a level to compare with.
        title: what is drawn.
        x_label: what x is.
        y_label: what y is.

    Raises:
        ExportError: matplotlib is not installed, the format is another one, there is nothing to
            draw, or the file cannot be written.
    """
    kind = Path(path).suffix.lstrip(".").lower()
    if kind not in _FORMATS:
        raise ExportError(
            f"cannot draw {path}: the file's name must end in .{', .'.join(_FORMATS)}"
        )
    if not lines:
        raise ExportError("there is nothing to draw: call analysis() first")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ExportError("a plot needs matplotlib\n  pip install 'engine[plot]'") from error
    columns = -(-len(lines) // _LEGEND_ROWS)
    figure = Figure(figsize=(7 + 2 * columns, 5), layout="constrained")
    axes = figure.add_subplot()
    if base is not None:
        axes.axhline(base, color="0.4", linestyle="--", linewidth=1, label="unpruned")
    for place, (name, points) in enumerate(lines.items()):
        # There are ten colours; lines of the same one differ in their markers.
        axes.plot(
            list(points),
            list(points.values()),
            color=f"C{place % 10}",
            marker=_MARKERS[place // 10 % len(_MARKERS)],
            markersize=4,
            label=name,
        )
    axes.set(title=title, xlabel=x_label, ylabel=y_label)
    figure.legend(loc="outside right upper", ncols=columns, fontsize="small")
    write_whole(path, lambda temporary: figure.savefig(temporary, format=kind, dpi=150))
