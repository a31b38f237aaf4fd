"""Models as ONNX files, through PyTorch's exporter; needs the extra ``engine[onnx]``."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from engine.attach.computed import held_weights
from engine.errors import ExportError
from engine.files import PathLike, write_whole


def require_onnx() -> None:
    """Raise ExportError when what the extra ``onnx`` installs is not there."""
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise ExportError(
            f"ONNX export needs {' and '.join(missing)}\n  pip install 'engine[onnx]'"
        )


def export_onnx(
    model: nn.Module, path: PathLike, input_shape: Sequence[int] | None, device: Any = None
) -> None:
    """Write ``model`` in evaluation mode as one ONNX file; the model is left as it was.

    Args:
        model: takes one floating-point input.
        path: the file. Masked weights are stored as the values they have now.
        input_shape: shape of the input, batch included; the batch becomes dynamic.
        device: where to trace; by default where the model's parameters are.

    Raises:
        ExportError: the extra is not installed, ``input_shape`` is missing or does not fit the
            model, or an operator has no ONNX form.
    """
    require_onnx()
    example = example_of(model, input_shape, device)
    home = next(model.parameters(), example).device
    target = example.device
    training = [module for module in model.modules() if module.training]

    def write() -> None:
        model(example)
        _write(
            path,
            lambda temporary: torch.onnx.export(
                model,
                (example,),
                str(temporary),
                dynamo=True,
                external_data=False,
                verbose=False,
                dynamic_shapes=({0: torch.export.Dim.AUTO},),
            ),
            f"for an input of shape {list(example.shape)}",
        )

    try:
        model.eval()
        if target != home:
            model.to(target)
        with torch.no_grad(), held_weights(model):
            write()
    except ExportError:
        raise
    except Exception as error:
        # The model's own forward raises whatever it likes.
        raise _refused(error, f"for an input of shape {list(example.shape)}") from error
    finally:
        if target != home:
            model.to(home)
        for module in training:
            module.training = True


def write_program(program: ExportedProgram, path: PathLike) -> None:
    """Write a program of integers (see ``integer_program.py``) as one QDQ ONNX file.

    Raises:
        ExportError: the extra is not installed, an operator has no ONNX form, or the file cannot be
            written.
    """
    require_onnx()
    quantize: Any = torch.ops.quantized_decomposed.quantize_per_tensor.default

    def export(temporary: Path) -> None:
        translated = torch.onnx.export(
            program,
            (),
            dynamo=True,
            verbose=False,
            custom_translation_table={quantize: _quantize()},
        )
        assert translated is not None
        # Where each node was written in Python is as much text as a small model has weights.
        for node in translated.model.graph:
            node.metadata_props.clear()
            for value in node.outputs:
                value.metadata_props.clear()
        translated.save(temporary, external_data=False)

    _write(path, export, "as integers")


def example_of(model: nn.Module, input_shape: Sequence[int] | None, device: Any) -> torch.Tensor:
    """Return an input of zeros, of the parameters' dtype.

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
        return torch.zeros(*input_shape, dtype=parameter.dtype, device=where)
    except (RuntimeError, AssertionError) as error:  # a device that is unknown, absent or full
        line = str(error).partition("\n")[0]
        raise ExportError(f'an input cannot be made on the device "{where}": {line}') from error


def _quantize() -> Callable[..., Any]:
    """Return the translation of ``quantize_per_tensor``; integers of fewer bits are clipped.

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


def _write(path: PathLike, export: Callable[[Path], object], where: str) -> None:
    def quietly(temporary: Path) -> None:
        exporter_log = logging.getLogger("torch.onnx")
        level = exporter_log.level
        exporter_log.setLevel(logging.ERROR)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                export(temporary)
        except OSError:
            raise
        except Exception as error:
            # Here, since write_whole takes a RuntimeError for a full disk.
            raise _refused(error, where) from error
        finally:
            exporter_log.setLevel(level)

    write_whole(path, quietly)


def _refused(error: BaseException, where: str) -> ExportError:
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return ExportError(f"the model cannot be exported to ONNX {where}: {lines[0]}")
