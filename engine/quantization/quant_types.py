"""What of a layer is quantized, and how its configuration says so."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Any

from engine.attach.wrapper import Wrapper


class QuantType(IntEnum):
    """What of a layer is quantized; the names are those of ``quant_types``, in capitals."""

    INPUT = 0
    WEIGHT = 1
    OUTPUT = 2
    GRADIENT = 3
    QUANT_INPUT = 0
    QUANT_WEIGHT = 1
    QUANT_OUTPUT = 2

    @property
    def key(self) -> str:
        """The name in a configuration: "input", "weight", "output", "gradient"."""
        return self.name.lower()


def quant_types_of(wrapper: Wrapper) -> list[QuantType]:
    """Return what of the layer is quantized, in the order of :class:`QuantType`."""
    names = wrapper.config.get("quant_types", ())
    return sorted(QuantType[name.upper()] for name in names)


def bits_of(wrapper: Wrapper, quant_type: QuantType | str) -> int:
    """Return the number of bits that the layer's entry gives ``quant_type``."""
    return int(of_type(wrapper.config["quant_bits"], quant_type))


def of_type(value: Any, quant_type: QuantType | str) -> Any:
    """Return what ``value`` is for ``quant_type``: a mapping's member or None, else the value."""
    if not isinstance(value, Mapping):
        return value
    return value.get(quant_type.key if isinstance(quant_type, QuantType) else quant_type)
