"""PyTorch's random state, left as it was found."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def random_state(model: nn.Module) -> Iterator[None]:
    """Put PyTorch's random state, also of the model's devices, back afterwards."""
    devices = {p.device for p in model.parameters() if p.device.type not in ("cpu", "meta")}
    kinds = {device.type for device in devices} or {"cuda"}
    numbers = [device.index for device in devices if device.index is not None]
    with torch.random.fork_rng(numbers, device_type=kinds.pop()):
        yield
