"""Models that an exporter says it can hold, and models that it says it cannot, for its checks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import cycle, islice
from typing import Any, NamedTuple

import torch
from torch import nn

from engine.attach.compressor import Compressor
from engine.attach.create import create_compressor
from engine.testing.networks import INPUT_SHAPE, linear_net, residual_net
from engine.testing.subject import Subject

#: Schemes, bits and sizes of groups that are tried, of what a format may or may not hold.
_SCHEMES = [
    f"per_{shared}_{kind}"
    for shared in ("channel", "tensor", "group")
    for kind in ("symmetric", "affine")
]
_BITS = (8, 4, 2, 3, 5, 6, 7)
_GROUPS = (32, 16, 64)


class Case(NamedTuple):
    """One model to be written: what it is, its compressor and example inputs."""

    what: str
    compressor: Compressor
    example: Any


def cases(subject: Subject) -> Iterator[Case]:
    """Yield models that a format says it holds: every kind, scheme, width and group once."""
    can = subject.plugin.expresses
    kinds = can.get("kinds", ("quantization",))
    if "quantization" in kinds:
        schemes = [s for s in _SCHEMES if s in can.get("weights", _SCHEMES)]
        # Symmetric integers of one bit are 0 alone.
        widths = [bits for bits in can.get("bits", (8, 4)) if bits > 1]
        widths = list(dict.fromkeys((widths[0], widths[-1])))
        lists = (schemes, widths, list(can.get("group_sizes", _GROUPS)))
        rounds = max(len(lists[0]), len(lists[1]))
        columns = (islice(cycle(each), rounds) for each in lists)
        for scheme, bits, group in zip(*columns, strict=True):
            yield _quantized(subject, scheme, bits, min(group, 64))
    if "pruning" in kinds:
        yield _pruned(subject)


def beyond(subject: Subject) -> Iterator[Case]:
    """Yield models that a format says it does not hold, one for each thing that it limits."""
    can = subject.plugin.expresses
    kinds = can.get("kinds", ("quantization", "pruning"))
    if "pruning" not in kinds:
        yield _pruned(subject)
    if "quantization" not in kinds:
        yield _quantized(subject, "per_channel_symmetric", 8, 32)
        return
    schemes, widths = can.get("weights", _SCHEMES), can.get("bits", _BITS)
    first = next(s for s in _SCHEMES if s in schemes)
    for scheme in [s for s in _SCHEMES if s not in schemes][:1]:
        yield _quantized(subject, scheme, widths[0], 32)
    for bits in [b for b in _BITS if b not in widths][:1]:
        yield _quantized(subject, first, bits, 32)
    grouped = [s for s in schemes if s.startswith("per_group")]
    for size in [g for g in (24, 48) if g not in can.get("group_sizes", (24, 48))][:1]:
        if grouped:
            yield _quantized(subject, grouped[0], widths[0], size)
    if can.get("activations") is False:
        yield _quantized(subject, first, widths[0], 32, activations=True)
    if "Conv2d" not in can.get("layers", ("Conv2d",)):
        yield _compressed(
            "convolutions", residual_net(), torch.randn(INPUT_SHAPE), _entry(8, first)
        )


def _quantized(
    subject: Subject, scheme: str, bits: int, group: int, *, activations: bool = False
) -> Case:
    model, example = _model(subject)
    entry = _entry(bits, scheme, group)
    what = f"{bits} bits {scheme}" + (f", groups of {group}" if "group" in scheme else "")
    if activations or subject.plugin.expresses.get("activations", True):
        entry["quant_types"] = ["weight", "input"]
        entry["quant_bits"] = {"weight": bits, "input": 8}
        what += ", activations"
    return _compressed(what, model, example, entry, exclude=_sharing(model))


def _pruned(subject: Subject) -> Case:
    model, example = _model(subject)
    entries = [
        {"op_types": ["Linear"], "sparsity": 0.5},
        *({"op_names": [name], "exclude": True} for name in _sharing(model)),
    ]
    pruner = create_compressor(model, {"compressor": "level", "config_list": entries})
    pruner.compress()
    return Case("pruned", pruner, example)


def _entry(bits: int, scheme: str, group: int = 32) -> dict[str, Any]:
    size = {"quant_group_size": group} if "group" in scheme else {}
    return {
        "quant_types": ["weight"],
        "quant_bits": bits,
        "quant_scheme": {"weight": scheme},
        **size,
    }


def _compressed(
    what: str,
    model: nn.Module,
    example: Any,
    entry: dict[str, Any],
    exclude: list[str] | None = None,
) -> Case:
    entries = [{"op_types": ["Conv2d", "Linear"], **entry}]
    kinds = {type(module).__name__ for module in model.modules()}
    entries[0]["op_types"] = [kind for kind in entries[0]["op_types"] if kind in kinds]
    entries += [{"op_names": [name], "exclude": True} for name in exclude or ()]
    quantizer: Any = create_compressor(model, {"compressor": "ptq", "config_list": entries})
    quantizer.compress()
    if "input" in entry["quant_types"]:
        keywords = isinstance(example, Mapping)
        quantizer.calibrate([example], lambda m, x: m(**x) if keywords else m(x))
    return Case(what, quantizer, example)


def _model(subject: Subject) -> tuple[nn.Module, Any]:
    """Return the model of ``x-engine.check``, or one whose layers the format holds."""
    if "model" in subject.hints:
        return subject.example_model()
    layers = subject.plugin.expresses.get("layers", ("Conv2d", "Linear"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if "Conv2d" in layers:
            return residual_net().eval(), torch.randn(INPUT_SHAPE)
        return linear_net().eval(), torch.randn(4, 64)


def _sharing(model: nn.Module) -> list[str]:
    """Return layers whose weight is also another's: a head tied to an embedding."""
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        weight = module._parameters.get("weight")
        if weight is not None:
            owners.setdefault(id(weight), []).append(name)
    modules = dict(model.named_modules())
    return [
        name
        for names in owners.values()
        if len(names) > 1
        for name in names
        if type(modules[name]).__name__ in ("Linear", "Conv2d")
    ]
