"""Weights that several layers share: one of them cannot be quantized alone."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from engine.attach.parametrized import source_of
from engine.attach.wrapper import Wrapper
from engine.quantization.quant_types import QuantType, quant_types_of


def half_shared(model: nn.Module, wrappers: Sequence[Wrapper]) -> list[tuple[str, str]]:
    """Return each layer whose weight is quantized with one that has the same weight and is not.

    No file holds both: a tied head and its embedding are one entry of it.
    """
    quantized = [w for w in wrappers if QuantType.WEIGHT in quant_types_of(w)]
    by_weight = {id(source_of(w.module)): w for w in quantized}
    modules = {id(w.module) for w in quantized}
    found = []
    for name, module in model.named_modules():
        parameter = source_of(module)
        wrapper = None if parameter is None else by_weight.get(id(parameter))
        if wrapper is not None and id(module) not in modules:
            found.append((wrapper.name, name))
    return found
