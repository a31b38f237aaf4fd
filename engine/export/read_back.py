"""Whether what an exporter has written computes what the model does, by the exporter's reader."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from engine.errors import ExportError
from engine.export.comparison import fault_of
from engine.export.plain_outputs import plain

if TYPE_CHECKING:
    from engine.export.source import Source


class Reads(Protocol):
    """What of an exporter is needed here."""

    def read(self, path: Path, source: Source) -> Callable[..., Any]:
        """Return what computes the file's outputs."""

    def explained(self, source: Source) -> list[float]:
        """Return how far off each output may be."""


def compare_read(exporter: Reads, source: Source, path: Path) -> None:
    """Read a file back and compare it with the model; see ``Exporter.compare``.

    Raises:
        ExportError: it computes something else, and ``source.compare`` is "error".

    Warns:
        UserWarning: the same, where that is "warn".
    """
    fault = fault_read(exporter, source, path)
    if not fault:
        return
    message = f"what was written computes something else than the model: {fault}"
    if source.compare == "error":
        raise ExportError(f'{message}\n  nothing was left; compare="warn" writes it all the same')
    warnings.warn(message, stacklevel=2)


def fault_read(exporter: Reads, source: Source, path: Path) -> str:
    """Return what is wrong with the outputs of a file; nothing if they are right."""
    sample = source.sample._replace(explained=exporter.explained(source))
    try:
        with torch.no_grad():
            outputs = exporter.read(path, source)(*source.args, **source.kwargs)
    except Exception as error:  # whatever somebody else's loader raises
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ExportError(f"what was written cannot be read back: {line}") from error
    return fault_of(arrays(outputs), sample)


def arrays(outputs: Any) -> list[Tensor]:
    """Return the tensors, and arrays as tensors, in what a reader has returned, in order."""
    leaves = pytree.tree_leaves(plain(outputs) if not _has_arrays(outputs) else outputs)
    return [torch.as_tensor(leaf).detach().cpu() for leaf in leaves if hasattr(leaf, "shape")]


def _has_arrays(outputs: Any) -> bool:
    leaves = pytree.tree_leaves(outputs)
    return any(hasattr(leaf, "shape") and not isinstance(leaf, Tensor) for leaf in leaves)
