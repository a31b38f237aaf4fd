"""Exports of a job: into its own folder, and of a pruned model made physically smaller."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import ExportError
from engine.export.onnx_file import OnnxOptions, example_of, export_onnx
from engine.export.ready import require_attached
from engine.files import PathLike, save_tensors
from engine.files.job import model_folder
from engine.pruning.mask_files import masks_of

if TYPE_CHECKING:
    from engine.pruning.pruner import Pruner


def placed(folder_name: PathLike | None, *paths: PathLike | None) -> list[Any]:
    """Return ``paths``, relative ones in the folder where this script's models belong.

    That is ``folder_name`` in the folder that ``engine run`` gives to each job; without a runner
    ``folder_name`` in the current folder, and nothing changes without either.

    Raises:
        ExportError: the folder cannot be made, or a path is none.
    """
    folder = model_folder(folder_name)
    if folder is None:
        return list(paths)
    try:
        # An absolute path stays what it is.
        return [None if path is None else Path(folder, os.fspath(path)) for path in paths]
    except TypeError as error:
        raise ExportError(f"a file's path is needed: {error}") from error


def export_smaller(
    pruner: Pruner,
    model_path: PathLike,
    mask_path: PathLike | None,
    onnx_path: PathLike | None,
    input_shape: Sequence[int] | None,
    device: Any,
    dummy_input: Any,
    options: OnnxOptions,
) -> None:
    """Make the model smaller, unless ``apply_speedup`` has been called, and write it.

    Masks are written first: they are those of the model as it was.

    Raises:
        ExportError: a file cannot be written.
        SpeedupError: no smaller model with equal outputs was found; nothing was changed.

    Warns:
        UserWarning: masks are asked for when they are gone.
    """
    from engine.speedup import is_smaller, save_compressed

    model = pruner.bound_model
    if pruner.speedup_report is None:
        require_attached(pruner)
        if mask_path is not None:
            save_tensors(mask_path, masks_of(pruner.wrappers, pruner.companions), read_back=True)
        pruner.apply_speedup(dummy_input)
    elif mask_path is not None:
        warnings.warn(
            f"{mask_path} is not written: apply_speedup() has removed what was masked, and there "
            "are no masks any more\n"
            "  leave it out, or export the masks before apply_speedup()",
            stacklevel=3,
        )
    if is_smaller(model):
        save_compressed(model, model_path)
    else:  # nothing could be removed, which apply_speedup has said
        save_tensors(model_path, model.state_dict())
    if onnx_path is not None:
        example = dummy_input if dummy_input is not None else pruner.dummy_input
        if example is None or input_shape is not None:
            example = example_of(model, input_shape, device)
        export_onnx(model, onnx_path, example, device, options)
