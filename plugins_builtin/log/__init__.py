"""A file with a row for each layer, each time that something is new: CSV, or JSON lines."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from engine import EngineError, LayerState, Watcher, layer_states

COLUMNS = (
    *("moment", "epoch", "step", "layer", "sparsity"),
    *("input_low", "input_high", "weight_low", "weight_high", "output_low", "output_high"),
)


class Log(Watcher):
    """Appends rows of sparsity and ranges, layer by layer; what is in the file already stays.

    Args:
        path: the file; ``.csv``, or ``.jsonl`` for a JSON object in each line.
        every: write after each so many optimizer steps, too; 0: when masks are new, at the
            beginning of each epoch, and at the end.

    Raises:
        EngineError: the path ends otherwise; when training begins, that the file cannot be
            written, or has other columns.
    """

    def __init__(self, path: str = "compression.csv", every: int = 0) -> None:
        super().__init__(every)
        self.path = Path(path)
        if self.path.suffix not in (".csv", ".jsonl"):
            raise EngineError(f'log: "{path}" must end in .csv or .jsonl')

    def begin(self) -> None:
        """Write the header of a new file; look whether an old one has the same."""
        self.path = self.path.absolute()  # whatever folder the program goes to
        if self.path.suffix != ".csv":
            self._append("")
            return
        header = ",".join(COLUMNS)
        try:
            with self.path.open(encoding="utf-8") as file:
                found = file.readline().rstrip("\n")
        except OSError:
            found = ""
        if not found:
            self._append(f"{header}\n")
        elif found != header:
            raise EngineError(
                f"log: {self.path} has other columns than this extension writes\n"
                "  give another path, or move the file away"
            )

    def look(self, moment: str) -> None:
        """Append a row for each layer."""
        assert self.compressor is not None
        rows = [self._row(moment, state) for state in layer_states(self.compressor)]
        text = io.StringIO()
        if self.path.suffix == ".csv":
            csv.DictWriter(text, COLUMNS, lineterminator="\n").writerows(rows)
        else:
            text.writelines(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)
        self._append(text.getvalue())

    def _row(self, moment: str, state: LayerState) -> dict[str, Any]:
        row = {
            "moment": moment,
            "epoch": self.epoch,
            "step": self.steps,
            "layer": state.name,
            "sparsity": state.sparsity,
        }
        for key in ("input", "weight", "output"):
            row[f"{key}_low"], row[f"{key}_high"] = state.ranges.get(key, (None, None))
        return row

    def _append(self, text: str) -> None:
        # Opened for each write: nothing is lost when the training is killed.
        try:
            with self.path.open("a", encoding="utf-8", newline="") as file:
                file.write(text)
        except OSError as error:
            raise EngineError(f"log: cannot write {self.path}: {error.strerror}") from error
