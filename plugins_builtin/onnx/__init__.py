"""ONNX with pairs of QuantizeLinear and DequantizeLinear, or of a pruned model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from engine import Quantizer
from engine.export import (
    Exporter,
    OnnxOptions,
    Placement,
    Source,
    explained_by_integers,
    export_integers,
    export_onnx,
    onnx_reader,
)


class OnnxExporter(Exporter):
    """Writes the whole model as ONNX; of a quantized one, what integer kernels are made from.

    Weights are 8-bit integers, and pairs of QuantizeLinear and DequantizeLinear stand wherever
    values are on a grid. What integer kernels need and the quantizer leaves in float gets ranges
    from ``batches``. The file is run on the example inputs and compared with the model.

    Args:
        opset_version: of the file's operators; None: PyTorch's choice.
        dynamic_axes: sizes that are free, by input; None: as many as the model's code allows.
        batches: sample inputs.
        device: where the model is traced.
    """

    def __init__(
        self,
        opset_version: int | None = None,
        dynamic_axes: Mapping[str, Mapping[str, str] | Sequence[int]] | None = None,
        batches: Iterable[Any] | None = None,
        device: Any = None,
    ) -> None:
        self.opset_version, self.batches, self.device = opset_version, batches, device
        self.dynamic_axes = None if dynamic_axes is None else _axes(dynamic_axes)

    def write(self, source: Source, path: Path) -> list[Placement] | None:
        """Write and compare the file."""
        options = OnnxOptions(self.opset_version, self.dynamic_axes, source.compare)
        if isinstance(source.compressor, Quantizer):
            found: list[Placement] = export_integers(
                source.compressor, path, source.example, self.device, self.batches, options
            )
            return found
        export_onnx(source.model, path, source.example, self.device, options)
        return None

    def compare(self, source: Source, path: Path) -> None:
        """Do nothing: ``write`` has compared the file, in more than one way."""

    def read(self, path: Path, source: Source) -> Callable[..., Any]:
        """Return what ONNX Runtime computes."""
        return onnx_reader(path)

    def explained(self, source: Source) -> list[float]:
        """Return what half a step at each rounding makes of the outputs."""
        if not isinstance(source.compressor, Quantizer):
            return super().explained(source)
        return explained_by_integers(source.compressor, source.example, self.batches)


def _axes(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return axes whose dimensions are numbers: JSON has text for keys."""
    return {
        name: {int(dim): text for dim, text in dims.items()} if isinstance(dims, Mapping) else dims
        for name, dims in given.items()
    }
