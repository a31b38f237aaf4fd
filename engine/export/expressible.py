"""What an exporter's schema says that its format can hold, held against a model.

    "expresses": {
      "kinds": ["quantization"],                 pruned, quantized, or both
      "layers": ["Linear"],                      classes of layers whose weight it holds
      "weights": ["per_channel_symmetric"],      per_{tensor,channel,group}_{symmetric,affine}
      "bits": [4, 8],                            of weights
      "group_sizes": [16, 32, 64],               of grids by groups; any if absent
      "activations": false,                      whether inputs and outputs may be quantized
      "example": false                           whether example inputs are needed
    }

What is absent is not limited.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from engine.errors import ExportError
from engine.export.exporter import Refused
from engine.export.source import Source
from engine.export.source_layer import SourceLayer

#: What ``expresses`` may say.
EXPRESSES = ("kinds", "layers", "weights", "bits", "group_sizes", "activations", "example")
_WORDS = {"pruning": "pruned", "quantization": "quantized"}


def inexpressible(source: Source, expresses: Mapping[str, Any]) -> Iterator[Refused]:
    """Yield what of ``source`` a format cannot hold that ``expresses`` so much."""
    kinds = expresses.get("kinds")
    if kinds is not None and source.kind not in kinds:
        able = " and ".join(_WORDS.get(kind, str(kind)) for kind in kinds)
        yield Refused("", f"is {_WORDS[source.kind]}; it holds models that are {able}")
        return
    if expresses.get("example") and not source.has_example:
        yield Refused("", "is traced, which needs example inputs: give dummy_input")
    for layer in source.layers.values():
        if source.kind == "quantization":
            yield from (Refused(layer.name, reason) for reason in _reasons(layer, expresses))


def _reasons(layer: SourceLayer, expresses: Mapping[str, Any]) -> Iterator[str]:
    active = [kind for kind in layer.kinds if kind in ("input", "output")]
    if active and expresses.get("activations") is False:
        yield (
            f"its {' and '.join(active)} is quantized, the format holds weights only: give it "
            '"quant_types": ["weight"]'
        )
    if "weight" not in layer.kinds:
        return
    known = expresses.get("layers")
    if known is not None and not _is_one_of(layer.module, known):
        yield f"is of the class {layer.type}; integers are held of {_listed(known)}"
        return
    if not expresses.keys() & {"weights", "bits", "group_sizes"}:
        return
    try:
        facts = layer.facts
    except ExportError as error:
        yield str(error)
        return
    schemes = expresses.get("weights")
    if schemes is not None and facts.turned:
        yield "has negative scales, from a batch norm that turns signs"
    if schemes is not None and facts.scheme not in schemes:
        yield f"its weight is {facts.scheme}; {_listed(schemes)} can be held"
        return
    able = expresses.get("bits")
    if able is not None and facts.bits not in able:
        yield f"its weight has {facts.bits} bits; {_listed(able)} can be held"
    sizes = expresses.get("group_sizes")
    if sizes is not None and facts.group_size is not None and facts.group_size not in sizes:
        yield f"its groups are of {facts.group_size} weights; {_listed(sizes)} can be held"


def _is_one_of(module: nn.Module, names: Sequence[str]) -> bool:
    """Return whether the class of ``module``, or one that it is made of, has one of ``names``."""
    return any(base.__name__ in names for base in type(module).__mro__)


def _listed(values: Sequence[Any]) -> str:
    texts = [str(value) for value in values]
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} or {texts[-1]}"
