"""A quantized model as a ``torch.export`` program of integers and scales."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from engine.errors import ExportError
from engine.export.clipping import absorb_clips
from engine.export.completion import complete
from engine.export.integer_bias import quantize_biases
from engine.export.integer_graph import make_explicit
from engine.export.integer_layers import integer_copy
from engine.export.integer_norm import fold_norms
from engine.export.placement import placements
from engine.export.selecting import drop_whole_slices, splits_as_slices
from engine.quantization.placement import Placement

if TYPE_CHECKING:
    from engine.quantization.quantizer import Quantizer


class IntegerProgram(NamedTuple):
    """A quantized model, exported.

    Attributes:
        program: takes what the model takes; weights are int8, activations pass
            ``quantized_decomposed`` operators. Where the model allows that the batch size is free
            from 2 on, and the length of inputs of integers, such as tokens.
        placements: which operators compute with integers.
        observed: how many tensors got a range from ``batches``.
    """

    program: ExportedProgram
    placements: list[Placement]
    observed: int


class _Calls(NamedTuple):
    """Inputs to export with, and which of their sizes are free; None: none is."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    dynamic_shapes: Any


def integer_program(
    quantizer: Quantizer, example: Any, batches: Iterable[Any] | None = None, device: Any = None
) -> IntegerProgram:
    """Return the quantizer's model as a program that computes what integer kernels do.

    In evaluation mode, with batch norms folded where a convolution or linear layer precedes them.
    Without ``batches`` it computes what the fake-quantized model does, up to the rounding of
    float32, and what that leaves in float stays float.

    Args:
        quantizer: attached to its model, which is not changed.
        example: inputs: a tensor, a tuple of positional ones, or a mapping of keywords.
        batches: sample inputs, as for ``calibrate``: tensors that the quantizer leaves in float
            and integer kernels need get 8-bit ranges from them (see ``completion.py``).
        device: where to export; by default where the model is. Inputs are there already.

    Raises:
        ExportError: see :func:`engine.export.integer_layers.integer_copy`; or the model cannot be
            exported for this example.
    """
    copied = integer_copy(quantizer)
    if device is not None:
        copied.to(device)
    args, kwargs = _call(example)
    try:
        with torch.no_grad():
            copied(*args, **kwargs)  # torch.export logs a traceback of what does not fit
    except Exception as error:
        raise _refused(error, example) from error
    module, calls = _graph_of(copied, args, kwargs)
    fold_norms(module)
    drop_whole_slices(module.graph)
    splits_as_slices(module.graph)
    make_explicit(module.graph)
    module.recompile()
    observed = complete(module, batches) if batches is not None else 0
    quantize_biases(module)
    absorb_clips(module.graph)
    module.recompile()
    where = placements(module.graph)
    try:
        program = _export(module, calls)
    except Exception as error:
        raise _refused(error, example) from error
    return IntegerProgram(program, where, observed)


def _refused(error: BaseException, args: Any) -> ExportError:
    while error.__cause__ is not None:
        error = error.__cause__
    shapes = [str(list(arg.shape)) for arg in pytree.tree_leaves(args) if isinstance(arg, Tensor)]
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return ExportError(
        f"the model cannot be exported for an input of shape {', '.join(shapes)}: {lines[0]}"
    )


def _call(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(example, Mapping):
        return (), dict(example)
    return (tuple(example), {}) if isinstance(example, (tuple, list)) else ((example,), {})


def _graph_of(
    model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[fx.GraphModule, _Calls]:
    """Return the graph of ``model``, and how it was called: with a free batch size if possible."""
    # A size of 1 would be taken for a constant.
    pairs = tuple(map(_twice, args)), {key: _twice(value) for key, value in kwargs.items()}
    program, calls = None, _Calls(args, kwargs, None)
    for free in (_free_text, _free_batch):
        shapes = (*map(free, pairs[0]), *map(free, pairs[1].values()))
        tried = _Calls(*pairs, dict(zip(kwargs, shapes, strict=True)) if kwargs else shapes)
        with contextlib.suppress(Exception):  # a size is a number somewhere in the model
            program, calls = _export(model, tried), tried
            break
    if program is None:
        try:
            program = _export(model, calls)
        except Exception as error:
            raise _refused(error, (args, kwargs)) from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = program.run_decompositions({}).module(check_guards=False)
    assert isinstance(module, fx.GraphModule)
    return module, calls


def _export(model: Any, calls: _Calls) -> ExportedProgram:
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch about itself
        return torch.export.export(
            model, calls.args, calls.kwargs, dynamic_shapes=calls.dynamic_shapes
        )


def _twice(value: Any) -> Any:
    if isinstance(value, Tensor) and value.dim() and value.shape[0] == 1:
        return torch.cat((value, value))
    return value


def _free_batch(value: Any) -> Any:
    return {0: Dim.AUTO} if isinstance(value, Tensor) and value.dim() else None


def _free_text(value: Any) -> Any:
    """Let numbers of tokens, and masks beside them, be of any length, too."""
    if isinstance(value, Tensor) and value.dim() > 1 and not value.is_floating_point():
        return {0: Dim.AUTO, 1: Dim.AUTO}
    return _free_batch(value)
