"""A quantized model as a ``torch.export`` program of integers and scales."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from engine.errors import ExportError
from engine.export.clipping import absorb_clips
from engine.export.completion import complete
from engine.export.free_sizes import Calls, DynamicAxes, as_call, possible_calls, require_free
from engine.export.integer_bias import quantize_biases
from engine.export.integer_graph import make_explicit
from engine.export.integer_layers import integer_copy
from engine.export.integer_norm import fold_norms
from engine.export.placement import placements
from engine.export.plain_outputs import plain
from engine.export.selecting import drop_whole_slices, splits_as_slices
from engine.quantization.placement import Placement
from engine.user_code.batches import batches_in

if TYPE_CHECKING:
    from engine.quantization.quantizer import Quantizer


class IntegerProgram(NamedTuple):
    """A quantized model, exported.

    Attributes:
        program: takes what the model takes; weights are int8, activations pass
            ``quantized_decomposed`` operators. Where the model allows that the batch size is free
            from 2 on, the length of inputs of integers, such as tokens, and sizes of pictures.
        placements: which operators compute with integers.
        observed: how many tensors got a range from ``batches``.
        names: of free sizes, by input and dimension, where they were given.
    """

    program: ExportedProgram
    placements: list[Placement]
    observed: int
    names: tuple[Mapping[int, str], ...] = ()


def integer_program(
    quantizer: Quantizer,
    example: Any,
    batches: Iterable[Any] | None = None,
    device: Any = None,
    dynamic_axes: DynamicAxes | None = None,
) -> IntegerProgram:
    """Return the first of :func:`integer_programs`."""
    return next(integer_programs(quantizer, example, batches, device, dynamic_axes))


def integer_programs(
    quantizer: Quantizer,
    example: Any,
    batches: Iterable[Any] | None = None,
    device: Any = None,
    dynamic_axes: DynamicAxes | None = None,
) -> Iterator[IntegerProgram]:
    """Yield the quantizer's model as a program that computes what integer kernels do.

    More than one, of fewer and fewer free sizes: some file formats cannot state all of them.

    In evaluation mode, with batch norms folded where a convolution or linear layer precedes them.
    Without ``batches`` it computes what the fake-quantized model does, up to the rounding of
    float32, and what that leaves in float stays float.

    Args:
        quantizer: attached to its model, which is not changed.
        example: inputs: a tensor, a tuple of positional ones, or a mapping of keywords.
        batches: sample inputs, as for ``calibrate``: tensors that the quantizer leaves in float
            and integer kernels need get 8-bit ranges from them (see ``completion.py``).
        device: where to export; by default where the model is. Inputs are there already.
        dynamic_axes: which sizes are free, by input; by default as many as the model allows.

    Raises:
        ExportError: see :func:`engine.export.integer_layers.integer_copy`; or the model cannot be
            exported for this example.
    """
    copied = integer_copy(quantizer)
    if device is not None:
        copied.to(device)
    args, kwargs = as_call(example)
    copied.register_forward_hook(lambda module, args, output: plain(output))
    try:
        with torch.no_grad():
            copied(*args, **kwargs)  # torch.export logs a traceback of what does not fit
    except ExportError:
        raise
    except Exception as error:
        raise _refused(error, example) from error
    kept = None if batches is None else list(batches_in(batches, "the export", ExportError))
    failed: Exception | None = None
    found = False
    for calls in possible_calls(copied, args, kwargs, dynamic_axes):
        try:
            exported = _export(copied, calls)
        except Exception as error:  # a size is a number somewhere in the model
            failed = error
            continue
        yield _finished(exported, calls, kept, example)
        found = True
    if not found:
        assert failed is not None
        raise _refused(failed, (args, kwargs)) from failed


def _finished(
    exported: ExportedProgram, calls: Calls, batches: list[Any] | None, example: Any
) -> IntegerProgram:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module: Any = exported.run_decompositions({}).module(check_guards=False)
    assert isinstance(module, fx.GraphModule)
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
    require_free(program, calls)
    return IntegerProgram(program, where, observed, calls.names)


def _refused(error: BaseException, args: Any) -> ExportError:
    while error.__cause__ is not None:
        error = error.__cause__
    shapes = [str(list(arg.shape)) for arg in pytree.tree_leaves(args) if isinstance(arg, Tensor)]
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return ExportError(
        f"the model cannot be exported for an input of shape {', '.join(shapes)}: {lines[0]}"
    )


def _export(model: Any, calls: Calls) -> ExportedProgram:
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch about itself
        return torch.export.export(
            model, calls.args, calls.kwargs, dynamic_shapes=calls.dynamic_shapes
        )
