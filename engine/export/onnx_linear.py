"""ONNX files in which linear layers are other operators than matrix products of float weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine.export.comparison import largest_difference
from engine.export.exporter import Refused
from engine.export.onnx_file import OnnxOptions, export_onnx
from engine.export.plain_outputs import tensors
from engine.export.source import Source
from engine.export.source_layer import SourceLayer


def write_onnx_with(
    source: Source,
    path: Path,
    made: Callable[[SourceLayer], nn.Module],
    options: OnnxOptions = OnnxOptions(),  # noqa: B008
) -> None:
    """Write the model as ONNX with ``made(layer)`` in the place of each quantized layer.

    The model itself is as it was afterwards; its other weights are shared with it, not copied. The
    file is not compared with the model: what is made need not compute anything in PyTorch.

    Args:
        source: with example inputs.
        path: the file.
        made: returns a module whose forward calls ``torch.onnx.ops.symbolic``, say.
        options: sizes and opset.

    Raises:
        ExportError: the model cannot be exported.
    """
    new = {layer.module: made(layer) for layer in source.quantized.values()}
    with _replaced(source.model, new):
        export_onnx(source.model, path, source.example, None, options._replace(compare="no"))


def refused_linear(source: Source) -> list[Refused]:
    """Return layers whose weight is read without the layer being called, or is not float32."""
    found = []
    for layer in source.quantized.values():
        if isinstance(layer.module, nn.modules.linear.NonDynamicallyQuantizableLinear):
            reason = "is part of nn.MultiheadAttention, which reads its weight and never calls it"
            found.append(Refused(layer.name, reason))
        elif layer.weight().dtype != torch.float32:
            reason = f"is {layer.weight().dtype}; call model.float() before the export"
            found.append(Refused(layer.name, reason))
    return found


def explained_by_inputs(
    source: Source, step: Callable[[SourceLayer, Tensor], Tensor]
) -> list[float]:
    """Return how far each output moves when inputs of quantized layers are rounded.

    For a runtime that puts them on integers of its own: each value moves by half a step up, down
    and at random, and what that changes is what a right file may be off.

    Args:
        source: with example inputs.
        step: the distance of two integers, for a layer and its input; broadcasts against it.
    """
    random = torch.Generator().manual_seed(0)
    moves: Sequence[Callable[[Tensor], Any]] = [
        lambda t: 0.5,
        lambda t: -0.5,
        *[lambda t: torch.rand(t.shape, generator=random).to(t) - 0.5] * 2,
    ]
    most = [0.0] * len(source.sample.expected)
    for move in moves:
        handles = [
            layer.module.register_forward_pre_hook(_moving(layer, step, move))
            for layer in source.quantized.values()
        ]
        try:
            with source.evaluated() as model:
                outputs = tensors(model(*source.args, **source.kwargs))
        finally:
            for handle in handles:
                handle.remove()
        for place, (own, moved) in enumerate(zip(source.sample.expected, outputs, strict=True)):
            if own.is_floating_point():
                most[place] = max(most[place], largest_difference(own, moved.cpu()))
    return most


def _moving(
    layer: SourceLayer, step: Callable[[SourceLayer, Tensor], Tensor], move: Callable[[Tensor], Any]
) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        first, *rest = args
        return (first + move(first) * step(layer, first), *rest)

    return hook


@contextmanager
def _replaced(model: nn.Module, new: Mapping[nn.Module, nn.Module]) -> Iterator[None]:
    """Within, the modules that are keys of ``new`` are its values, wherever they stand."""
    places = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent._modules.items()
        if child in new
    ]
    try:
        for parent, name, child in places:
            assert child is not None
            parent._modules[name] = new[child].train(child.training)
        yield
    finally:
        for parent, name, child in places:
            parent._modules[name] = child
