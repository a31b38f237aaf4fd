"""An ONNX file as a function of what the model takes, run by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


def onnx_reader(path: Path) -> Callable[..., list[Any]]:
    """Return what computes the outputs of an ONNX file, on the CPU.

    It takes the model's arguments, whose tensors are the file's inputs in order, and returns arrays
    in the order of the file's outputs. Needs onnxruntime.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4
    # Or products of float with integer weights alone have their inputs rounded by the runtime.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]

    def run(*args: Any, **kwargs: Any) -> list[Any]:
        inputs = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        arrays = (t.detach().cpu().numpy() for t in inputs)
        found: list[Any] = session.run(None, dict(zip(names, arrays, strict=True)))
        return found

    return run
