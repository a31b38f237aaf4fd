"""The fraction that is asked of a layer: checked, and shown to the algorithm."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from engine.attach.wrapper import Wrapper
from engine.plugins.blame import at_fault


@contextmanager
def in_config(asked: Sequence[tuple[int, Wrapper, float]]) -> Iterator[None]:
    """Let ``wrapper.config["sparsity"]`` be what is asked now, for algorithms that read it there.

    So a schedule drives also an algorithm whose ``calc_mask`` takes no ``sparsity``.
    """
    own = [(wrapper, wrapper.config) for _, wrapper, _ in asked]
    try:
        for _, wrapper, target in asked:
            wrapper.config = {**wrapper.config, "sparsity": target}
        yield
    finally:
        for wrapper, config in own:
            wrapper.config = config


def fraction(value: Any, plugin: object, wrapper: Wrapper, *_: Any) -> float:
    """Return what ``plugin`` asked of a layer as a float.

    Raises:
        PluginError: it is no number in [0, 1].
    """
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0.0 <= number <= 1.0:
        raise at_fault(
            plugin,
            f'asked for a sparsity of {value!r} in layer "{wrapper.name}"; it must be in [0, 1]',
            hook="sparsity",
            layer=wrapper.name,
        )
    return number
