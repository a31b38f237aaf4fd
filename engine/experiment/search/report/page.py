"""The report as one HTML page that needs no other file and no network."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

from engine.errors import EngineError
from engine.experiment.search.report import charts
from engine.experiment.search.report.tables import (
    LAYER_HEADER,
    layer_rows,
    number,
    ordered,
    totals_of,
)

_LAYERS = 60


def page(report: dict[str, Any], best: dict[str, Any] | None) -> str:
    """Return the page.

    Args:
        report: what ``collect`` returned.
        best: the best configuration as a one-time experiment, None without any.

    Raises:
        EngineError: Jinja2, which comes with PyTorch, is not installed.
    """
    try:
        from jinja2 import Environment
    except ImportError as error:
        raise EngineError("the HTML page needs Jinja2\n  pip install 'engine[search]'") from error
    # Whatever a file or a script says is text: autoescape writes it out.
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["number"] = number
    template = files(__package__).joinpath("report.html.jinja").read_text(encoding="utf-8")
    model = report["models"].get(str(report["best"]))
    return environment.from_string(template).render(
        report=report,
        finished=ordered(report),
        best=json.dumps(best, indent=2) if best is not None else "",
        history=_history(report),
        front=_front(report),
        importances=_importances(report),
        totals=totals_of(model) if model else [],
        layer_header=LAYER_HEADER,
        layers=layer_rows(model) if model else [],
        layer_chart=_layer_chart(model) if model else "",
    )


def _history(report: dict[str, Any]) -> Any:
    """Return the scores in the order of the trials, and a line: the best so far."""
    shown = [trial for trial in report["trials"] if trial["values"] is not None]
    if not shown:
        return ""
    objective = report["objectives"][0]
    pick = max if objective["target"] == "max" else min
    points, line = [], []
    best: float | None = None
    for trial in shown:
        value = trial["values"][0]
        best = value if best is None else pick(best, value)
        line.append((trial["number"], best))
        text = f"trial {trial['number']}: {number(value)}"
        points.append((trial["number"], value, text, trial["number"] == report["best"]))
    return _safe(charts.scatter(points, "trial", objective["name"], line))


def _front(report: dict[str, Any]) -> Any:
    """Return the first two objectives against each other, the Pareto front marked."""
    if len(report["objectives"]) < 2:
        return ""
    front = set(report["pareto"])
    points = [
        (
            trial["values"][1],
            trial["values"][0],
            f"trial {trial['number']}: {', '.join(map(number, trial['values']))}",
            trial["number"] in front,
        )
        for trial in report["trials"]
        if trial["values"] is not None
    ]
    names = [each["name"] for each in report["objectives"]]
    return _safe(charts.scatter(points, names[1], names[0])) if points else ""


def _importances(report: dict[str, Any]) -> Any:
    shares = report["importances"].get("shares", {})
    rows = [(name, share, f"{100 * share:.0f} %") for name, share in shares.items()]
    return _safe(charts.bars(rows, "share of each parameter")) if rows else ""


def _layer_chart(model: dict[str, Any]) -> Any:
    layers = model["layers"][:_LAYERS]
    rows = []
    for layer in layers:
        bits = f", {layer['weight_bits']} bit" if layer["weight_bits"] else ""
        text = f"{100 * layer['sparsity']:.0f} % removed{bits}"
        rows.append((str(layer["name"]), 1 - layer["sparsity"], text))
    return _safe(charts.bars(rows, "weights that are left in each layer")) if rows else ""


def _safe(svg: str) -> Any:
    """Mark what ``charts`` has drawn, and escaped itself, as markup."""
    from markupsafe import Markup

    return Markup(svg)
