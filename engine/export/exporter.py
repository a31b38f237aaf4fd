"""What the author of an exporter writes: one class that writes a file, and names who reads it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from engine.export.read_back import compare_read
from engine.export.source import Source
from engine.quantization.placement import Placement


class Refused(NamedTuple):
    """What of a model a format cannot hold.

    Attributes:
        layer: the layer's name; "" where it is the model as a whole.
        reason: why, and what would be possible; the end of a sentence.
    """

    layer: str
    reason: str


class Exporter:
    """One file format.

    An instance is made for each export; the options of ``schema.json``, checked and completed, are
    its keyword arguments and become attributes. What a format can hold is stated in the schema,
    under ``x-engine.expresses``, and refused by the engine, layer by layer, before anything is
    written; :meth:`refusals` is for what can only be computed.

    The engine calls, in this order, ``refusals``, ``write``, and where there are example inputs
    ``compare``. The file gets its name after that: if one of them raises, nothing is left.
    """

    def __init__(self, **options: Any) -> None:
        for name, value in options.items():
            setattr(self, name, value)

    def refusals(self, source: Source) -> Iterable[Refused]:
        """Return what of ``source`` the format cannot hold, beyond what the schema says.

        Nothing has been written yet.
        """
        return ()

    def write(self, source: Source, path: Path) -> list[Placement] | None:
        """Write ``source``.

        Args:
            source: the model, layers, grids and example inputs.
            path: a file of the name that it will have, in a temporary folder, where a second one
                ``name + ".data"`` may be written beside it; or an empty folder where the schema's
                ``endings`` are ``"/"``.

        Returns:
            Which operators compute with integers, where the format says so; else None.
        """
        raise NotImplementedError

    def read(self, path: Path, source: Source) -> Callable[..., Any]:
        """Return what computes the file's outputs, by a program that is not the one that wrote it.

        It is called with the model's own arguments and returns tensors or arrays, in any
        containers, in the order of the model's. Modules that it imports are named in the schema
        under ``x-engine.reader``, so that it is not called where they are missing.

        Args:
            path: what :meth:`write` has written.
            source: where the model's structure comes from, for a file that holds none.
        """
        raise NotImplementedError

    def explained(self, source: Source) -> list[float]:
        """Return how far off each output of a right file may be, beside the rounding of float32.

        That is what the grids explain: a runtime that rounds activations, scales of less precision.
        """
        return [0.0] * len(source.sample.expected)

    def compare(self, source: Source, path: Path) -> None:
        """Compare the file with the model, as ``source.compare`` says.

        Raises:
            ExportError: the file computes something else.
        """
        compare_read(self, source, path)
