"""Products of float32 in float32, also where a card would round their factors to TensorFloat-32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def _settings() -> list[tuple[Any, str, object]]:
    """Return what decides it, and the value that stands for float32; by operator since 2.9."""
    backends: Any = torch.backends
    if hasattr(backends.cuda.matmul, "fp32_precision"):
        operators = (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn)
        return [(operator, "fp32_precision", "ieee") for operator in operators]
    return [(part, "allow_tf32", False) for part in (backends.cuda.matmul, backends.cudnn)]


@contextmanager
def float32_products() -> Iterator[None]:
    """Within, convolutions and matrix products keep all digits of float32.

    PyTorch lets convolutions on a card round their factors to 10 bits of mantissa. How a smaller
    convolution then differs from a masked one is a hundred times what a comparison may allow.
    """
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in _settings()]
    try:
        for owner, name, exact in _settings():
            setattr(owner, name, exact)
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)
