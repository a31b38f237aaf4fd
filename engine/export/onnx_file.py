"""Models as ONNX files, through PyTorch's exporter; needs the extra ``engine[onnx]``."""

from __future__ import annotations

import importlib.util
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from engine.attach.computed import held_weights
from engine.errors import ExportError
from engine.export.comparison import Sample, compare_file, require_choice, sample_of
from engine.export.free_sizes import Calls, DynamicAxes, as_call, possible_calls, require_free
from engine.export.plain_outputs import plain_outputs
from engine.files import PathLike
from engine.files.together import write_together

#: Of the weights, in bytes: a file of protobuf is below 2 GiB; what is larger has a second file.
LARGEST_FILE = 1_800_000_000
_OLDEST, _NEWEST = 13, 23


class OnnxOptions(NamedTuple):
    """How an ONNX file is to be.

    Attributes:
        opset_version: of its operators; None: PyTorch's choice.
        dynamic_axes: by input, the free dimensions and their names, as for ``torch.onnx.export``;
            None: as many as the model's code allows.
        compare: what to do when it computes something else than the model: "error", "warn", or "no"
            comparison.
    """

    opset_version: int | None = None
    dynamic_axes: DynamicAxes | None = None
    compare: str = "error"

    def check(self) -> None:
        """Raise ExportError for a choice that there is not."""
        require_choice(self.compare)
        opset = self.opset_version
        if opset is not None and (type(opset) is not int or not _OLDEST <= opset <= _NEWEST):
            raise ExportError(
                f"opset_version is {opset!r}\n  it needs a whole number from {_OLDEST} to {_NEWEST}"
            )


def require_onnx() -> None:
    """Raise ExportError when what the extra ``onnx`` installs is not there."""
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise ExportError(
            f"ONNX export needs {' and '.join(missing)}\n  pip install 'engine[onnx]'"
        )


def export_onnx(
    model: nn.Module,
    path: PathLike,
    example: Any,
    device: Any = None,
    options: OnnxOptions = OnnxOptions(),  # noqa: B008
) -> None:
    """Write ``model`` in evaluation mode as an ONNX file; the model is left as it was.

    Args:
        model: masked weights are stored as the values they have now.
        path: the file.
        example: inputs: a tensor, a tuple of positional ones, or a mapping of keywords.
        device: where to trace; by default where the model's parameters are.
        options: sizes, opset and comparison.

    Raises:
        ExportError: the extra is not installed, the example does not fit the model, an operator has
            no ONNX form, or the file computes something else.
    """
    require_onnx()
    options.check()
    args, kwargs = as_call(example)
    shapes = [list(t.shape) for t in (*args, *kwargs.values()) if isinstance(t, Tensor)]
    where = f"for an input of shape {', '.join(map(str, shapes))}"
    first = next((t for t in (*args, *kwargs.values()) if isinstance(t, Tensor)), torch.empty(0))
    home = next(model.parameters(), first).device
    target = first.device
    training = [module for module in model.modules() if module.training]
    try:
        model.eval()
        if target != home:
            model.to(target)
        with torch.no_grad(), held_weights(model), plain_outputs(model):
            samples = [sample_of(model, args, kwargs)] if options.compare != "no" else []
            calls = possible_calls(model, args, kwargs, options.dynamic_axes)
            weights = sum(parameter.numel() for parameter in model.parameters())
            for_one = partial(_write_model, model, path, options, samples, weights, where)
            _first_that_works(calls, for_one)
    except ExportError:
        raise
    except Exception as error:
        # The model's own forward raises whatever it likes.
        raise _refused(error, where) from error
    finally:
        if target != home:
            model.to(home)
        for module in training:
            module.training = True


def write_program(
    program: ExportedProgram,
    path: PathLike,
    options: OnnxOptions = OnnxOptions(),  # noqa: B008
    samples: Sequence[Sample] = (),
    names: Sequence[Any] = (),
) -> None:
    """Write a program of integers (see ``integer_program.py``) as one QDQ ONNX file.

    Raises:
        ExportError: the extra is not installed, an operator has no ONNX form, the file cannot be
            written, or computes something else than ``samples`` say.
    """
    require_onnx()
    quantize: Any = torch.ops.quantized_decomposed.quantize_per_tensor.default

    def translate() -> Any:
        translated = torch.onnx.export(
            program,
            (),
            dynamo=True,
            verbose=False,
            opset_version=options.opset_version,
            custom_translation_table={quantize: _quantize()},
        )
        return _without_text(translated)

    weights = sum(value.numel() for value in program.state_dict.values())
    _write(path, translate, options, samples, names, weights, "as integers")


def example_of(model: nn.Module, input_shape: Sequence[int] | None, device: Any) -> torch.Tensor:
    """Return an input of numbers in [-1, 1], of the parameters' dtype, the same each time.

    Raises:
        ExportError: ``input_shape`` is missing or holds no sizes, or there is no such device.
    """
    if not input_shape:
        raise ExportError("ONNX export needs input_shape, such as [1, 1, 28, 28]")
    if not all(type(size) is int and size > 0 for size in input_shape):
        raise ExportError(
            f"input_shape is {input_shape!r}\n"
            "  it needs whole numbers from 1 on, batch included, such as [1, 1, 28, 28]"
        )
    parameter = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    where = parameter.device if device is None else device
    try:
        zeros = torch.zeros(*input_shape, dtype=parameter.dtype, device=where)
    except (RuntimeError, AssertionError) as error:  # a device that is unknown, absent or full
        line = str(error).partition("\n")[0]
        raise ExportError(f'an input cannot be made on the device "{where}": {line}') from error
    if zeros.is_meta:
        return zeros
    noise = torch.rand(zeros.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return zeros + noise.to(zeros)


def _quantize() -> Any:
    """Return how a quantize is written in ONNX: PyTorch's own ONNX form leaves its limits out.

    ``QuantizeLinear`` clips to the whole of its type only.
    """
    from onnxscript import opset18

    op: Any = opset18

    def translate(
        input: Any, scale: float, zero_point: int, quant_min: int, quant_max: int, dtype: int
    ) -> Any:
        zero = op.Cast(op.Constant(value_int=zero_point), to=dtype)
        quantized = op.QuantizeLinear(input, op.Constant(value_float=scale), zero)
        if (quant_min, quant_max) == (0, 255):
            return quantized
        limits = (op.Cast(op.Constant(value_int=n), to=dtype) for n in (quant_min, quant_max))
        return op.Clip(quantized, *limits)

    return translate


def _write_model(
    model: nn.Module,
    path: PathLike,
    options: OnnxOptions,
    samples: Sequence[Sample],
    weights: int,
    where: str,
    calls: Calls,
) -> None:
    def translate() -> Any:
        with torch.no_grad():
            program = torch.export.export(
                model, calls.args, calls.kwargs, dynamic_shapes=calls.dynamic_shapes
            )
        require_free(program, calls)
        return _without_text(
            torch.onnx.export(
                program, (), dynamo=True, verbose=False, opset_version=options.opset_version
            )
        )

    _write(path, translate, options, samples, calls.names, weights, where)


def _without_text(translated: Any) -> Any:
    """Return what the exporter made without where in Python each node was written.

    That is as much text as a small model has weights.
    """
    assert translated is not None
    for node in translated.model.graph:
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
    return translated


def _first_that_works(calls: Sequence[Calls], write: Callable[[Calls], None]) -> None:
    """Write with the first of ``calls`` that the exporter takes; raise the last one's error."""
    for place, tried in enumerate(calls):
        try:
            write(tried)
            return
        except NotExportedError:
            if place + 1 == len(calls):
                raise


class NotExportedError(ExportError):
    """The exporter does not take a model, for these free sizes at least."""


def _write(
    path: PathLike,
    translate: Callable[[], Any],
    options: OnnxOptions,
    samples: Sequence[Sample],
    names: Sequence[Any],
    weights: int,
    where: str,
) -> None:
    import onnx_ir

    with _quiet():
        try:
            translated = translate()
            _name_sizes(translated.model.graph, names)
        except ExportError:
            raise
        except Exception as error:
            raise _refused(error, where) from error
    _require_opset(translated.model, options.opset_version)

    def save(temporary: Path) -> None:
        graph = translated.model.graph
        size = sum(v.const_value.nbytes for v in graph.initializers.values() if v.const_value)
        beside = f"{temporary.name}.data" if size > LARGEST_FILE else None
        onnx_ir.save(translated.model, temporary, external_data=beside)
        if options.compare != "no" and samples:
            compare_file(temporary, samples, weights, options.compare)

    write_together(path, save, ".data")


@contextmanager
def _quiet() -> Iterator[None]:
    """Within, PyTorch's exporter says nothing of itself."""
    logs = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)


def _name_sizes(graph: Any, names: Sequence[Any]) -> None:
    """Let free sizes have the names that the user gave them."""
    new: dict[str, str] = {}
    for value, dims in zip(graph.inputs, names, strict=False):
        for dim, name in dims.items():
            new[str(value.shape[dim])] = name
    if not new:
        return
    pattern = re.compile(r"\b(" + "|".join(map(re.escape, new)) + r")\b")
    values = [*graph.inputs, *(value for node in graph for value in node.outputs)]
    for value in values:
        for dim, size in enumerate(value.shape or ()):
            if not isinstance(size, int):
                value.shape[dim] = pattern.sub(lambda found: new[found[0]], str(size))


def _require_opset(model: Any, asked: int | None) -> None:
    """Raise ExportError where PyTorch could not convert operators to the version asked for."""
    given = model.opset_imports.get("")
    if asked is not None and given != asked:
        raise ExportError(
            f"the model's operators cannot be written in opset {asked}, only in {given}\n"
            "  choose a newer opset_version"
        )


def _first_line(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0]


def _refused(error: BaseException, where: str) -> NotExportedError:
    return NotExportedError(f"the model cannot be exported to ONNX {where}: {_first_line(error)}")
