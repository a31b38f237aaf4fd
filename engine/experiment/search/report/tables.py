"""The report as text: a table for a terminal, and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

_SHOWN = 10
_FAILURES = 5


def totals_of(model: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """Return name, before, after and their ratio of each total and measure that is known."""
    rows = []
    for name, pair in [*model["totals"].items(), *model["measures"].items()]:
        before, after = pair.get("before"), pair.get("after")
        if after is None:
            continue
        ratio = f"{after / before:.3g}" if before else ""
        label = name.replace("_", " ").replace("seconds", "(s)").replace("params", "parameters")
        rows.append((label, number(before), number(after), ratio))
    return rows


def ordered(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the finished trials, best first; with several objectives the Pareto front first."""
    sign = -1.0 if report["objectives"][0]["target"] == "max" else 1.0
    finished = [trial for trial in report["trials"] if trial["values"] is not None]
    front = set(report["pareto"])
    return sorted(finished, key=lambda t: (t["number"] not in front, sign * t["values"][0]))


def summary(report: dict[str, Any], table: Any) -> str:
    """Return the report for a terminal.

    Args:
        report: what ``collect`` returned.
        table: makes a table of a header, rows and the limits of their widths.
    """
    finished = ordered(report)
    counts: dict[str, int] = {}
    for trial in report["trials"]:
        kind = "carried on" if trial["carried_on"] else trial["status"].partition(":")[0]
        counts[kind] = counts.get(kind, 0) + 1
    told = ", ".join(f"{count} {kind}" for kind, count in counts.items()) or "no trials"
    lines = [f"{report['name']}: {report['compressor']} by {report['proposer']}; {told}"]
    failures = _failures(report)
    if failures:
        lines += ["", table(("FAILED", "WHY", "OUTPUT"), failures, (8, 70, 20))]
    if not finished:
        return "\n".join([*lines, "", "no trial has finished: there is nothing to compare"])
    names = [each["name"] for each in report["objectives"]]
    front = set(report["pareto"])
    header = ("TRIAL", *(name.upper() for name in names), "SECONDS", "CONFIGURATION")
    rows = [
        (
            f"{trial['number']}{' *' if trial['number'] in front else ''}",
            *(number(value) for value in trial["values"]),
            number(trial["seconds"]),
            ", ".join(f"{k} {number(v)}" for k, v in trial["parameters"].items()),
        )
        for trial in finished[: max(_SHOWN, len(front))]
    ]
    lines += ["", table(header, rows, (8, *(12 for _ in names), 10, 80))]
    if front:
        lines.append("* no other trial is better in every objective (Pareto front)")
    shares = report["importances"].get("shares", {})
    if shares:
        rows = [(name, f"{100 * share:.0f} %") for name, share in shares.items()]
        title = f"WHAT MATTERED ({report['importances']['method']})"
        lines += ["", table((title, "SHARE"), rows, (60, 8))]
    model = report["models"].get(str(report["best"]))
    if model is not None:
        lines += ["", f"best, trial {report['best']}:"]
        lines.append(table(("", "BEFORE", "AFTER", "RATIO"), totals_of(model), (30, 14, 14, 8)))
        lines += ["", table(LAYER_HEADER, layer_rows(model), (40, 16, 16, 16, 8, 9))]
    return "\n".join(lines)


def _failures(report: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return number, reason and output file of the last trials that failed for good."""
    failed = [
        trial
        for trial in report["trials"]
        if trial["status"].startswith("failed") and not trial["carried_on"]
    ]
    rows = []
    for trial in failed[-_FAILURES:]:
        why = trial["status"].partition(": ")[2]
        if trial.get("last_line"):
            why += f": {trial['last_line']}"
        rows.append((str(trial["number"]), why, f"jobs/{trial['number']}.out"))
    return rows


LAYER_HEADER = ("LAYER", "TYPE", "SHAPE", "NOW", "REMOVED", "BITS W/A")


def layer_rows(model: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return one row of text for each layer, under ``LAYER_HEADER``."""
    return [
        (
            str(layer["name"]),
            str(layer["type"]),
            _shape(layer["shape_before"]),
            _shape(layer["shape_after"]),
            f"{100 * layer['sparsity']:.1f}%",
            f"{layer['weight_bits'] or '-'}/{layer['activation_bits'] or '-'}",
        )
        for layer in model["layers"]
    ]


def as_csv(report: dict[str, Any]) -> str:
    """Return all trials as CSV: one line each, a column for each searched value."""
    names = [each["name"] for each in report["parameters"]]
    labels = [each["name"] for each in report["objectives"]]
    measures = sorted({name for trial in report["trials"] for name in trial["measures"]})
    extra = [name for name in measures if name not in labels]
    stream = io.StringIO()
    writer = csv.writer(stream)
    writer.writerow(["trial", "status", "seconds", *labels, *extra, *names])
    for trial in report["trials"]:
        writer.writerow(
            [
                trial["number"],
                _inert(trial["status"]),
                trial["seconds"],
                *(trial["values"] or [None] * len(labels)),
                *(trial["measures"].get(name) for name in extra),
                *(_inert(trial["parameters"].get(name)) for name in names),
            ]
        )
    return stream.getvalue()


def number(value: Any) -> str:
    """Return a value as a table shows it."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _shape(sizes: Sequence[int] | None) -> str:
    return "x".join(map(str, sizes)) if sizes else "-"


def _inert(value: Any) -> Any:
    """Return text so that a spreadsheet does not take it for a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in "=+-@" else value
