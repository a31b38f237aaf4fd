"""What a one-shot algorithm answers for one layer, checked."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from engine.attach.wrapper import Wrapper
from engine.errors import PluginError
from engine.plugins.blame import at_fault, describe


class LayerResult(NamedTuple):
    """A mask, a new weight, a grid that stands: any of them, each None where there is none.

    Attributes:
        mask: of the weight, ones and zeros, in its shape. A pruner's.
        weight: in place of the weight, in its shape; what a mask removes of it is zero.
        grid: scale and zero point of the weight, shaped as
            :meth:`engine.quantization.Scheme.parameters` gives them; they stand from here on. A
            quantizer's.
        note: what a person must know of it, in a few words: that a plainer method was better.
    """

    mask: Tensor | None = None
    weight: Tensor | None = None
    grid: tuple[Tensor, Tensor] | None = None
    note: str = ""


def checked_result(
    result: Any, wrapper: Wrapper, provider: object, allowed: tuple[str, ...]
) -> LayerResult:
    """Return what ``provider`` answered for a layer, if that is a result that fits it.

    Args:
        result: what was returned.
        wrapper: of the layer.
        provider: the algorithm, for messages.
        allowed: which of "mask", "weight" and "grid" a compressor of its kind has a use for.

    Raises:
        PluginError: no LayerResult, one with something else, or a weight that is none.
    """

    def fault(message: str) -> PluginError:
        return result_fault(message, wrapper, provider, allowed)

    if not isinstance(result, LayerResult):
        raise fault(f"returned a {type(result).__name__}")
    for name in ("mask", "weight", "grid"):
        if name not in allowed and getattr(result, name) is not None:
            raise fault(f"returned a {name}, which it has no use for")
    if result.weight is not None:
        shape = tuple(wrapper.weight.shape)
        if not isinstance(result.weight, Tensor) or tuple(result.weight.shape) != shape:
            got = getattr(result.weight, "shape", type(result.weight).__name__)
            raise fault(f"returned a weight of shape {tuple(got)} for one of {shape}")
        if not bool(torch.isfinite(result.weight).all()):
            raise fault("returned a weight that holds NaN or infinity")
    return result


def result_fault(
    message: str, wrapper: Wrapper, provider: object, allowed: tuple[str, ...]
) -> PluginError:
    """Return the error for an answer that is no good."""
    arguments = ", ".join(f"{name}=..." for name in allowed)
    return at_fault(
        provider,
        f'for layer "{wrapper.name}" ({wrapper.type}) {message}\n'
        f"  it must return a LayerResult({arguments}), or None",
        more=".calibrate_layer",
        hook="calibrate_layer",
        layer=wrapper.name,
    )


def tell(provider: object, notes: Mapping[str, str]) -> None:
    """Warn of layers that an algorithm did something plainer with, by what that is.

    Args:
        provider: the algorithm.
        notes: by the layer's name; "" where there is nothing to say.
    """
    layers: dict[str, list[str]] = defaultdict(list)
    for layer, note in notes.items():
        if note:
            layers[note].append(layer)
    for note, names in layers.items():
        shown = ", ".join(f'"{name}"' for name in names[:5])
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        warnings.warn(
            f"{describe(provider)}: {len(names)} of {len(notes)} layers {note}: {shown}{more}",
            stacklevel=3,
        )
