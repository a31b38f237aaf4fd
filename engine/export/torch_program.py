"""A compressed model as a ``torch.export`` program: of integers, or with what was pruned zero."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from engine.attach.computed import held_weights
from engine.errors import ExportError
from engine.export.free_sizes import DynamicAxes, possible_calls
from engine.export.plain_outputs import plain_outputs
from engine.export.source import Source
from engine.quantization.placement import Placement
from engine.quantization.quantizer import Quantizer


def exported_program(
    source: Source, batches: Iterable[Any] | None = None, dynamic_axes: DynamicAxes | None = None
) -> tuple[Any, list[Placement]]:
    """Return a ``torch.export.ExportedProgram`` and which of its operators compute with integers.

    Args:
        source: with example inputs.
        batches: of a quantized model, sample inputs that give ranges to what has none.
        dynamic_axes: which sizes are free, by input; None: as many as the model allows.

    Raises:
        ExportError: a tensor without an affine form, or a model that cannot be exported.
    """
    if isinstance(source.compressor, Quantizer):
        from engine.export.integer_program import integer_program

        found = integer_program(source.compressor, source.example, batches, None, dynamic_axes)
        return found.program, found.placements
    failed: Exception | None = None
    with source.evaluated() as model, held_weights(model), plain_outputs(model):
        for calls in possible_calls(model, source.args, source.kwargs, dynamic_axes):
            try:
                program = torch.export.export(
                    model, calls.args, calls.kwargs, dynamic_shapes=calls.dynamic_shapes
                )
            except Exception as error:  # a size is a number somewhere in the model
                failed = error
                continue
            return program, []
    line = (str(failed).strip().splitlines() or [type(failed).__name__])[0]
    raise ExportError(f"torch.export cannot make a graph of the model: {line}")


def load_program(path: Any) -> Any:
    """Return the module of a ``.pt2`` file; integers need operators that this defines."""
    import torch.ao.quantization.fx._decomposed  # defines torch.ops.quantized_decomposed

    return torch.export.load(path).module()
