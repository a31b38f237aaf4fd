"""Charts as SVG, drawn by hand: they stand in the page and need nothing from anywhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

_WIDTH, _HEIGHT = 640, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 16, 40


class Axis:
    """One axis: its values from ``low`` to ``high`` on pixels from ``start`` to ``end``."""

    def __init__(self, values: Sequence[float], start: float, end: float) -> None:
        low, high = min(values), max(values)
        if low == high:
            low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
        room = 0.04 * (high - low)
        self.low, self.high = low - room, high + room
        self._start, self._end = start, end

    def at(self, value: float) -> float:
        """Return the pixel of a value."""
        share = (value - self.low) / (self.high - self.low)
        return self._start + share * (self._end - self._start)

    def ticks(self) -> list[float]:
        """Return some round values: steps of 1, 2 or 5 times a power of ten."""
        rough = (self.high - self.low) / 5
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.99)
        first = math.ceil(self.low / step)
        return [n * step for n in range(first, math.floor(self.high / step) + 1)]


def scatter(
    points: Sequence[tuple[float, float, str, bool]],
    x_title: str,
    y_title: str,
    line: Sequence[tuple[float, float]] = (),
) -> str:
    """Return points in a plane as an SVG element.

    Args:
        points: x, y, the text shown when the mouse is on it, and whether it stands out.
        x_title: what x is.
        y_title: what y is.
        line: points of a line of steps, such as the best so far.
    """
    x = Axis([point[0] for point in points], _LEFT, _WIDTH - _RIGHT)
    y = Axis([point[1] for point in points], _HEIGHT - _BOTTOM, _TOP)
    parts = [_frame(x, y, x_title, y_title)]
    if line:
        path = f"M{x.at(line[0][0]):.1f} {y.at(line[0][1]):.1f}"
        for to_x, to_y in line[1:]:
            path += f"H{x.at(to_x):.1f}V{y.at(to_y):.1f}"
        parts.append(f'<path class="line" d="{path}"/>')
    for at_x, at_y, text, stands_out in sorted(points, key=lambda point: point[3]):
        kind = "best" if stands_out else "point"
        parts.append(
            f'<circle class="{kind}" cx="{x.at(at_x):.1f}" cy="{y.at(at_y):.1f}" r="4">'
            f"<title>{escape(text)}</title></circle>"
        )
    label = f"{y_title} against {x_title}"
    return _svg(_HEIGHT, "".join(parts), label)


def bars(rows: Sequence[tuple[str, float, str]], label: str) -> str:
    """Return horizontal bars as an SVG element.

    Args:
        rows: a name, a share from 0 to 1, and the text beside the bar.
        label: what the chart shows, for those who cannot see it.
    """
    left, height = 240, 22
    parts = []
    for index, (name, share, text) in enumerate(rows):
        top = index * height
        width = max(0.0, min(1.0, share)) * (_WIDTH - left - 80)
        parts.append(
            f'<text class="name" x="{left - 8}" y="{top + 15}">{escape(_short(name))}'
            f"<title>{escape(name)}</title></text>"
            f'<rect class="bar" x="{left}" y="{top + 4}" width="{width:.1f}" height="14"/>'
            f'<text x="{left + width + 6:.1f}" y="{top + 15}">{escape(text)}</text>'
        )
    return _svg(height * len(rows) + 4, "".join(parts), label)


def _frame(x: Axis, y: Axis, x_title: str, y_title: str) -> str:
    parts = []
    for tick in x.ticks():
        at = x.at(tick)
        parts.append(
            f'<path class="grid" d="M{at:.1f} {_TOP}V{_HEIGHT - _BOTTOM}"/>'
            f'<text class="middle" x="{at:.1f}" y="{_HEIGHT - _BOTTOM + 16}">{tick:g}</text>'
        )
    for tick in y.ticks():
        at = y.at(tick)
        parts.append(
            f'<path class="grid" d="M{_LEFT} {at:.1f}H{_WIDTH - _RIGHT}"/>'
            f'<text class="name" x="{_LEFT - 6}" y="{at + 4:.1f}">{tick:.4g}</text>'
        )
    middle = (_TOP + _HEIGHT - _BOTTOM) / 2
    parts.append(
        f'<text class="middle" x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{_HEIGHT - 4}">'
        f"{escape(x_title)}</text>"
        f'<text class="middle" transform="translate(12 {middle}) rotate(-90)">'
        f"{escape(y_title)}</text>"
    )
    return "".join(parts)


def _svg(height: float, inside: str, label: str) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height:g}" role="img" aria-label="{escape(label)}">'
        f"{inside}</svg>"
    )


def _short(name: str) -> str:
    return name if len(name) <= 34 else f"..{name[-32:]}"
