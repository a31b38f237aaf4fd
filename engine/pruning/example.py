"""What a pruner's ``dummy_input`` stands for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def arguments_of(dummy_input: Any) -> tuple[Any, Mapping[str, Any] | None]:
    """Return positional and keyword arguments: a mapping is of keywords, all else positional."""
    return ((), dummy_input) if isinstance(dummy_input, Mapping) else (dummy_input, None)
