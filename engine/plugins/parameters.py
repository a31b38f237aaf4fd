"""What a parameter is: whole, with values, changeable in place, or a reason why not."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

WORKS = "what works: one process, and torch.nn.parallel.DistributedDataParallel"


def fault_of(parameter: Tensor) -> str | None:
    """Return why a parameter cannot be worked on, and what to do; None if it can."""
    if is_instance(parameter, "torch.distributed.tensor", "DTensor"):
        placements = ", ".join(map(str, getattr(parameter, "placements", ())))
        return (
            f"is a DTensor ({placements}): fully_shard (FSDP2) or tensor parallelism has sharded "
            f"it, which is not supported yet\n  {WORKS}"
        )
    if hasattr(parameter, "ds_id"):
        return f"is partitioned by DeepSpeed ZeRO-3, which is not supported yet\n  {WORKS}"
    if getattr(parameter, "_is_flat_param", False):
        return f"is a flat parameter of FSDP, which is not supported yet\n  {WORKS}"
    if parameter.is_meta:
        return (
            "is on the meta device and has no values\n"
            "  load the model's weights first: model.to_empty(device=...), then load_state_dict"
        )
    if parameter.layout != torch.strided:
        return f"is sparse ({parameter.layout})\n  make it dense first: parameter.to_dense()"
    if parameter.is_inference():
        return (
            "was made under torch.inference_mode() and cannot be changed\n"
            "  make the model outside of it, or take copy.deepcopy(model) outside of it"
        )
    return None


def fault_in(layer: Any) -> str | None:
    """Return which parameter of a wrapper's layer cannot be worked on, and why; None if all can."""
    for name, parameter in layer.module._parameters.items():
        if parameter is not None and (fault := fault_of(parameter)):
            return f'the {name} of layer "{layer.name}" ({layer.type}) {fault}'
    return None


def is_instance(value: object, module: str, name: str) -> bool:
    """Return whether ``value`` is of a class that is imported only where somebody uses it."""
    cls: Any = getattr(sys.modules.get(module), name, None)
    return cls is not None and isinstance(value, cls)
