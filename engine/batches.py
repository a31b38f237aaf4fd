"""What a person's batch is to a model that is run without labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

#: Calls a model with a batch, where :func:`call_with_batch` is not right.
Forward = Callable[[nn.Module, Any], object]


def call_with_batch(model: nn.Module, batch: Any) -> object:
    """Call ``model`` with a batch: a mapping as keywords, of a tuple or list the first item."""
    if isinstance(batch, Mapping):
        return model(**batch)
    if isinstance(batch, (tuple, list)):
        return model(batch[0])
    return model(batch)
