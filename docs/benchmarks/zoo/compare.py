"""Running a model on given inputs and comparing what comes out."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

#: Positional and keyword arguments.
Given = tuple[tuple[Any, ...], Mapping[str, Any]]


def leaves(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in a nested output, also those in objects of any class."""
    for leaf in tree_leaves(value):
        if isinstance(leaf, Tensor):
            yield leaf
        elif isinstance(leaf, Mapping):
            yield from leaves(list(leaf.values()))
        elif hasattr(leaf, "__dict__") and not callable(leaf):
            yield from leaves(list(vars(leaf).values()))


def outputs(model: nn.Module, given: Given) -> list[Tensor]:
    """Return the output tensors for one input, with the same random numbers each time."""
    torch.manual_seed(3)
    with torch.no_grad():
        # Models may change their inputs.
        args, kwargs = copy.deepcopy(given)
        return [t.clone() for t in leaves(model(*args, **kwargs))]


def difference(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """Return the largest difference relative to the largest value of each output."""
    if [t.shape for t in ours] != [t.shape for t in theirs]:
        return float("inf")
    worst = 0.0
    for a, b in zip(ours, theirs, strict=True):
        if not b.numel():
            continue
        if not (b.is_floating_point() or b.is_complex()):
            worst = max(worst, float(not torch.equal(a, b)))
            continue
        off = float((a - b).abs().max() / b.abs().max().clamp(min=1e-30))
        worst = max(worst, off if off == off else float("inf"))
    return worst


def backward(model: nn.Module, given: Given) -> None:
    """Run the model forward and backward; raise if no parameter gets a gradient."""
    args, kwargs = copy.deepcopy(given)
    result = leaves(model(*args, **kwargs))
    total = sum(t.abs().sum() for t in result if t.requires_grad)
    if not isinstance(total, Tensor):
        raise RuntimeError("no output depends on a parameter")
    total.backward()
    if all(p.grad is None for p in model.parameters()):
        raise RuntimeError("no parameter has a gradient")


def trains(model: nn.Module, given: Given) -> bool:
    """Return whether a forward in training mode runs; the model stays as it is."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    model.train()
    try:
        outputs(model, given)
    except Exception:
        return False
    finally:
        model.eval()
        for buffer, value in buffers:
            buffer.copy_(value)
    return True
