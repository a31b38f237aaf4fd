"""The model as an ONNX file, through PyTorch's exporter; needs the extra ``engine[onnx]``."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from engine.computed import held_weights
from engine.errors import ExportError
from engine.files import PathLike, write_whole


def export_onnx(
    model: nn.Module, path: PathLike, input_shape: Sequence[int] | None, device: Any = None
) -> None:
    """Write ``model`` in evaluation mode as one ONNX file; the model is left as it was.

    Args:
        model: takes one floating-point input.
        path: the file. Masked and quantized weights are stored as the values they have now.
        input_shape: shape of the input, batch included; the batch becomes dynamic.
        device: where to trace; by default where the model's parameters are.

    Raises:
        ExportError: the extra is not installed, ``input_shape`` is missing or does not fit the
            model, or an operator has no ONNX form.
    """
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise ExportError(
            f"ONNX export needs {' and '.join(missing)}\n  pip install 'engine[onnx]'"
        )
    if not input_shape:
        raise ExportError("ONNX export needs input_shape, such as [1, 1, 28, 28]")
    parameter = next(model.parameters(), torch.empty(0))
    home = parameter.device
    training = [module for module in model.modules() if module.training]
    target = torch.device(device) if device is not None else home
    example = torch.zeros(*input_shape, dtype=parameter.dtype, device=target)

    def refused(error: BaseException) -> ExportError:
        while error.__cause__ is not None:
            error = error.__cause__
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return ExportError(
            f"the model cannot be exported to ONNX for an input of shape {list(input_shape)}: "
            f"{lines[0]}"
        )

    def write(temporary: Path) -> None:
        exporter_log = logging.getLogger("torch.onnx")
        level = exporter_log.level
        exporter_log.setLevel(logging.ERROR)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                torch.onnx.export(
                    model,
                    (example,),
                    str(temporary),
                    dynamo=True,
                    external_data=False,
                    verbose=False,
                    dynamic_shapes=({0: torch.export.Dim.AUTO},),
                )
        except OSError:
            raise
        except Exception as error:
            # Here, since write_whole takes a RuntimeError for a full disk.
            raise refused(error) from error
        finally:
            exporter_log.setLevel(level)

    try:
        model.eval()
        if target != home:
            model.to(target)
        with torch.no_grad(), held_weights(model):
            model(example)
            write_whole(path, write)
    except ExportError:
        raise
    except Exception as error:
        # The model's own forward raises whatever it likes.
        raise refused(error) from error
    finally:
        if target != home:
            model.to(home)
        for module in training:
            module.training = True
