"""What a sensitivity analysis has measured, in a file that a later run goes on from."""

from __future__ import annotations

import ctypes
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from engine.errors import CheckpointError
from engine.files import PathLike, write_whole

_FORMAT = 1


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
        self._path = None if path is None else Path(path)
        self._settings = dict(settings)
        self.base: float | None = None
        self.layers: dict[str, dict[float, float]] = {}
        if self._path is not None and self._path.exists():
            self._read(self._path)

    def set_base(self, metric: float) -> None:
        """Keep the metric of the model as it is."""
        self.base = metric
        self._write()

    def add(self, layer: str, sparsity: float, metric: float) -> None:
        """Keep the metric with one layer pruned."""
        self.layers.setdefault(layer, {})[sparsity] = metric
        self._write()

    def _write(self) -> None:
        if self._path is None:
            return
        document = {
            "format": _FORMAT,
            "settings": self._settings,
            "base": self.base,
            "layers": {
                layer: {repr(sparsity): metric for sparsity, metric in measured.items()}
                for layer, measured in self.layers.items()
            },
        }
        text = json.dumps(document, indent=1) + "\n"
        write_whole(self._path, lambda temporary: temporary.write_text(text, encoding="utf-8"))

    def _read(self, path: Path) -> None:
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            known, settings = document["format"], document["settings"]
            base, layers = document["base"], document["layers"]
            if known != _FORMAT:
                raise CheckpointError(f"{path} has format {known!r}; this engine reads {_FORMAT}")
            self.base = None if base is None else float(base)
            self.layers = {
                layer: {float(sparsity): float(metric) for sparsity, metric in measured.items()}
                for layer, measured in layers.items()
            }
            differing = [key for key in self._settings if settings.get(key) != self._settings[key]]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{path} is not the progress file of a sensitivity analysis: "
                f"{type(error).__name__}: {error}\n  remove it, or give another file"
            ) from error
        if differing:
            then, now = settings, self._settings
            lines = [
                f"  {key}: {_short(then.get(key))} in the file, {_short(now[key])} now"
                for key in differing
            ]
            raise CheckpointError(
                "\n".join(
                    [
                        f"{path} belongs to another analysis; nothing was measured",
                        *lines,
                        "  remove it, give another file, or analyse what it was made for",
                    ]
                )
            )


def fingerprint(model: nn.Module) -> str:
    """Return what tells a model apart: a digest of its parameters and buffers, names included."""
    digest = hashlib.sha256()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype};".encode())
        content = tensor.detach().cpu().contiguous()
        # The bytes as they lie in memory; NumPy, which has them too, need not be installed.
        size = content.numel() * content.element_size()
        digest.update((ctypes.c_char * size).from_address(content.data_ptr()))
    return digest.hexdigest()[:16]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
