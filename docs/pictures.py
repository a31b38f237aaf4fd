"""The pictures of the site, as SVG: ``python docs/pictures.py`` writes docs/pictures/*.svg.

Text and lines are grey enough to be read on white and on black; there is no background.
"""

from pathlib import Path

from house import house

import engine

FOLDER = Path(__file__).resolve().parent / "pictures"
INK, COLOURS = "#7d7d7d", ("#2f7ed8", "#d9822b", "#2a9d5c", "#b5479d")
STYLE = f'font-family="sans-serif" font-size="13" fill="{INK}"'
HEAD = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {0} {1}" role="img" aria-label="{2}">'

#: A step of training: what the user's loop calls, and the hooks that it meets.
STEPS = (
    ("update_epoch(n)", "once an epoch", ("update_epoch",)),
    ("model(x)", "forward", ("quantize_input", "quantize_weight", "quantize_output")),
    ("loss.backward()", "backward", ("quant_backward",)),
    ("optimizer.step()", "before it", ("before_step",)),
    ("", "weights move", ()),
    ("", "after it", ("step",)),
    ("", "where masks are due", ("sparsity", "calc_mask", "calibrate_layer")),
    ("", "weights *= masks", ("masks_updated",)),
)


def life_cycle():
    """Return the picture of a training step with its hooks."""
    width, row = 660, 44
    parts = [HEAD.format(width, row * len(STEPS) + 40, "A training step and its hooks")]
    parts.append(f"<g {STYLE}>")
    for x, title in ((10, "your loop"), (190, "moment"), (360, "hooks")):
        parts.append(f'<text x="{x}" y="20" font-weight="bold">{title}</text>')
    for number, (call, moment, hooks) in enumerate(STEPS):
        y = 40 + row * number
        if call:
            parts.append(_box(10, y, 150, call, INK))
        parts.append(f'<text x="190" y="{y + 20}">{moment}</text>')
        if number:
            parts.append(f'<path d="M180 {y - 12} v14" stroke="{INK}" stroke-width="1.5"/>')
        for place, hook in enumerate(hooks):
            colour = COLOURS[0] if hook in PROVIDERS else COLOURS[2]
            parts.append(_box(340 + 106 * place, y, 100, hook, colour))
    return "\n".join([*parts, "</g></svg>"]) + "\n"


PROVIDERS = (
    *("sparsity", "calc_mask", "calibrate_layer", "score_block", "quant_backward"),
    *("quantize_input", "quantize_weight", "quantize_output"),
)


def _box(x, y, width, text, colour):
    middle = f'x="{x + width / 2}" y="{y + 19}" text-anchor="middle" font-size="11.5"'
    return (
        f'<rect x="{x}" y="{y}" width="{width}" height="30" rx="5" fill="none" '
        f'stroke="{colour}" stroke-width="1.5"/><text {middle}>{text}</text>'
    )


def schedules(epochs=12):
    """Return the picture of sparsity over epochs, as the schedules themselves give it."""
    from torch import nn

    entries = {
        "agp": {"final_sparsity": 0.8, "end_epoch": 10},
        "linear": {"final_sparsity": 0.8, "end_epoch": 10},
        "agp, frequency 3": {"final_sparsity": 0.8, "end_epoch": 10, "frequency": 3},
        "level": {"sparsity": 0.8},
    }
    curves = {}
    for name, entry in entries.items():
        section = {
            "compressor": name.partition(",")[0],
            "config_list": [{**entry, "op_types": ["Linear"]}],
        }
        pruner = engine.create_compressor(nn.Linear(40, 25), section)
        pruner.compress()
        curve = curves.setdefault(name, [])
        for epoch in range(epochs + 1):
            pruner.update_epoch(epoch)
            pruner.update_masks()
            curve.append((epoch, 100 * engine.total_sparsity(pruner)))
        pruner.unwrap()
    return chart("epoch", "% removed", curves, (0, epochs), (0, 100), steps=True)


#: docs/benchmarks/README.md and docs/examples/third_party: percent of weights kept or of 32 bits.
DIGITS = {
    "agp + level": [(100, 99.38), (10, 99.33), (3, 98.62)],
    "agp + movement": [(100, 99.38), (10, 99.20), (3, 98.84)],
    "qat": [(100, 99.38), (25, 99.42), (12.5, 99.42), (9.4, 99.20), (6.25, 95.69)],
    "lsq": [(100, 99.38), (12.5, 99.42), (6.25, 98.13)],
}


def accuracy_against_size():
    """Return the picture of accuracy on digits against what is left of the weights' bits."""
    from math import log2

    curves = {
        name: [(-log2(100 / size), accuracy) for size, accuracy in points]
        for name, points in DIGITS.items()
    }
    ticks = {-log2(100 / size): f"{size:g}" for size in (100, 50, 25, 12.5, 6.25, 3.125)}
    return chart("% of the weights' bits left", "% right", curves, (-5.2, 0), (95, 100), ticks)


def chart(x_title, y_title, curves, x_range, y_range, ticks=None, *, steps=False):
    """Return a line chart; ``curves`` maps a name to points."""
    width, height, left, bottom = 560, 300, 48, 44
    across, up = width - left - 150, height - bottom - 16

    def place(x, y):
        share = [(v - low) / (high - low) for v, (low, high) in ((x, x_range), (y, y_range))]
        return left + share[0] * across, 16 + (1 - share[1]) * up

    parts = [HEAD.format(width, height, f"{y_title} over {x_title}"), f"<g {STYLE}>"]
    step = (y_range[1] - y_range[0]) / 5
    for number in range(6):
        value = y_range[0] + number * step
        _, y = place(x_range[0], value)
        parts.append(
            f'<path d="M{left} {y:.1f} h{across}" stroke="{INK}" stroke-opacity="0.3"/>'
            f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>'
        )
    marks = ticks or {x: str(x) for x in range(int(x_range[0]), int(x_range[1]) + 1, 2)}
    for value, text in marks.items():
        x, _ = place(value, y_range[0])
        parts.append(f'<text x="{x:.1f}" y="{height - 26}" text-anchor="middle">{text}</text>')
    parts.append(f'<text x="{left + across / 2}" y="{height - 6}" text-anchor="middle">{x_title}')
    parts.append(f'</text><text x="{left + 6}" y="12">{y_title}</text>')
    for number, (name, points) in enumerate(curves.items()):
        colour = COLOURS[number]
        shown = [place(*point) for point in points]
        path = f"M{shown[0][0]:.1f} {shown[0][1]:.1f}"
        for x, y in shown[1:]:
            path += f" H{x:.1f} V{y:.1f}" if steps else f" L{x:.1f} {y:.1f}"
        parts.append(f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        if not steps:
            parts += [
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in shown
            ]
        y = 40 + 22 * number
        parts.append(
            f'<path d="M{width - 138} {y - 4} h18" stroke="{colour}" stroke-width="3"/>'
            f'<text x="{width - 114}" y="{y}">{name}</text>'
        )
    return "\n".join([*parts, "</g></svg>"]) + "\n"


PICTURES = {
    "life_cycle": life_cycle,
    "schedules": schedules,
    "accuracy_against_size": accuracy_against_size,
    "house": lambda: house(HEAD, STYLE, INK, COLOURS[0]),
}

if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for title, draw in PICTURES.items():
        (FOLDER / f"{title}.svg").write_text(draw(), encoding="utf-8")
