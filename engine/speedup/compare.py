"""Comparing a smaller model with the masked one that it was made from."""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from engine.speedup.float32_products import float32_products
from engine.speedup.nested import tensors_in

#: Relative to the largest output, by dtype: how far outputs of the smaller model may be off.
_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}


class Difference(NamedTuple):
    """How a smaller model differs from the masked one.

    Attributes:
        message: what is different, or the error.
        failed_in: the module that failed to run, if one did.
        stated: the error was raised by Python code, not by an operator.
    """

    message: str
    failed_in: str | None
    stated: bool = False


def run(
    model: nn.Module,
    inputs: tuple[Sequence[Any], Mapping[str, Any]],
    mode: AbstractContextManager[Any] | None = None,
) -> Any:
    """Return the model's output on copies of ``inputs``, with the same random numbers each time.

    The model, and nothing else, runs inside ``mode``.
    """
    args, kwargs = copied(inputs)
    devices = {t.device.index or 0 for t in tensors_in(inputs) if t.device.type == "cuda"}
    with torch.random.fork_rng(devices), float32_products():
        torch.manual_seed(0)
        with mode or nullcontext():
            return model(*args, **kwargs)


def copied(inputs: Any) -> Any:
    """Return ``inputs`` with every tensor copied: a model may change what it is given."""
    return tree_map(lambda t: t.clone() if isinstance(t, Tensor) else t, inputs)


def difference(
    model: nn.Module,
    inputs: tuple[Sequence[Any], Mapping[str, Any]],
    expected: Any,
    mode: AbstractContextManager[Any] | None = None,
) -> Difference | None:
    """Return how the outputs on ``inputs`` differ from ``expected``, None when they do not.

    The model runs inside ``mode``. In which of its modules it failed is not looked for here.
    """
    try:
        with torch.no_grad():
            actual = run(model, inputs, mode)
    except Exception as error:
        # A size that is written into the model's code shows as any kind of error.
        return Difference(f"{type(error).__name__}: {error}", "", _is_stated(error))
    found, wanted = tensors_in(actual), tensors_in(expected)
    if len(found) != len(wanted):
        return Difference(f"{len(found)} output tensors instead of {len(wanted)}", None)
    for ours, theirs in zip(found, wanted, strict=True):
        if ours.shape != theirs.shape:
            shapes = f"{tuple(ours.shape)} instead of {tuple(theirs.shape)}"
            return Difference(f"an output has shape {shapes}", None)
        if not theirs.is_floating_point() or not theirs.numel():
            continue
        scale = float(theirs.abs().max())
        off = float((ours - theirs).abs().max())
        if not off <= _TOLERANCE.get(theirs.dtype, 2e-2) * max(scale, 1e-30):
            return Difference(f"outputs are off by {off:.3g} on a scale of {scale:.3g}", None)
    return None


def _is_stated(error: Exception) -> bool:
    frames = traceback.extract_tb(error.__traceback__)
    line = (frames[-1].line or "") if frames else ""
    return line.startswith(("raise", "assert"))
