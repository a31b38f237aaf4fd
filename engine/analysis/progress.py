"""What a sensitivity analysis has measured, in a file that a later run goes on from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.files import PathLike
from engine.files.progress import ProgressFile, Words

_WORDS = Words(
    kind="the progress file of a sensitivity analysis",
    other="another analysis; nothing was measured",
    damaged="remove it, or give another file",
    foreign="remove it, give another file, or analyse what it was made for",
)


class Progress:
    """Measurements of one model with one set of settings, kept in a file if there is one.

    The file is JSON, written whole after each measurement: ``base`` is the metric of the model as
    it is, ``layers`` the metric by layer and sparsity.

    Args:
        path: the file, or None to keep measurements in memory only.
        settings: what the measurements depend on, plain values.

    Raises:
        CheckpointError: the file is damaged, or it belongs to another model or other settings.
    """

    def __init__(self, path: PathLike | None, settings: Mapping[str, Any]) -> None:
        self._file = None if path is None else ProgressFile(Path(path), settings, _WORDS)
        self.base: float | None = None
        self.layers: dict[str, dict[float, float]] = {}
        if self._file is not None:
            self._read(self._file)

    def set_base(self, metric: float) -> None:
        """Keep the metric of the model as it is."""
        self.base = metric
        self._write()

    def add(self, layer: str, sparsity: float, metric: float) -> None:
        """Keep the metric with one layer pruned."""
        self.layers.setdefault(layer, {})[sparsity] = metric
        self._write()

    def _write(self) -> None:
        if self._file is None:
            return
        layers = {
            layer: {repr(sparsity): metric for sparsity, metric in measured.items()}
            for layer, measured in self.layers.items()
        }
        self._file.write({"base": self.base, "layers": layers})

    def _read(self, file: ProgressFile) -> None:
        document = file.read()
        if document is None:
            return
        try:
            base = document["base"]
            self.base = None if base is None else float(base)
            self.layers = {
                layer: {float(sparsity): float(metric) for sparsity, metric in measured.items()}
                for layer, measured in document["layers"].items()
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise file.damaged(error) from error
