"""What a search has found: a table of its trials, and files for programs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.files import PathLike, write_whole
from engine.files.table import text_table, write_csv
from engine.pruning.automatic.journal import Trial


def config_list(layers: Mapping[str, float]) -> list[dict[str, Any]]:
    """Return sparsities by layer as a ``config_list``, one entry per layer."""
    return [{"op_names": [name], "sparsity": s} for name, s in layers.items() if s > 0]


def trials_table(trials: Sequence[Trial], target: float, score: Callable[[float], float]) -> str:
    """Return a table of all trials, the best of those that remove ``target`` marked."""
    reaching = [t for t in trials if t.removed >= target - 1e-9]
    best = max(reaching, key=lambda t: score(t.metric), default=None)
    rows = [
        [t.what, str(t.number), f"{t.removed:.4f}", f"{t.metric:.6g}", "*" if t is best else ""]
        for t in trials
    ]
    return text_table(["tried", "number", "removed", "metric", "best"], rows, texts=1)


def write_results(
    folder: PathLike,
    trials: Sequence[Trial],
    layers: Mapping[str, float],
    performance: float | None,
) -> None:
    """Write ``search_history.csv``, every trial, and ``search_result.json``, what was decided on.

    Raises:
        ExportError: a file cannot be written.
    """
    header = ["number", "tried", "removed", "performance", "config_list"]
    rows = [
        [t.number, t.what, t.removed, t.metric, json.dumps(config_list(t.plan))] for t in trials
    ]
    write_csv(Path(folder) / "search_history.csv", [header, *rows])
    result = {"performance": performance, "config_list": config_list(layers)}
    text = json.dumps(result, indent=1) + "\n"
    path = Path(folder) / "search_result.json"
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
