"""Which layers an algorithm gets: ``config_list`` against a model.

Entries apply in order; a later entry that matches a layer replaces an earlier one for it, whole;
``exclude`` takes the layer out. ``op_types`` are names of layer classes, base classes included
(``Linear`` also selects a subclass of ``nn.Linear``); ``default`` stands for the algorithm's own
types. ``op_names`` are dotted module names, or patterns of them. Where both are given, both must
match. A pattern in an entry without types looks among the layers that ``default`` stands for, since
``encoder.*`` is no wish to prune containers and activations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn
from torch.nn.parameter import UninitializedParameter

from engine.attach.names import Names, NoLayerError, count
from engine.attach.parametrized import is_parametrized
from engine.errors import ConfigError, Problem, nearest

#: Layers whose output channels are filters.
FILTER_TYPES = (
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "Linear",
)
#: Layers that carry a weight: what ``default`` means unless an algorithm says otherwise.
WEIGHTED_TYPES = (*FILTER_TYPES, "Bilinear", "PReLU", "Embedding", "EmbeddingBag")


class Selected(NamedTuple):
    """One layer, the entry that applies to it, and that entry's place in the list."""

    name: str
    module: nn.Module
    config: Mapping[str, Any]
    place: int


def select_layers(
    model: nn.Module,
    entries: Sequence[Mapping[str, Any]],
    *,
    default_types: Sequence[str] = WEIGHTED_TYPES,
    needs_weight: Callable[[Mapping[str, Any]], bool] = lambda entry: True,
    check: Callable[[nn.Module], str | None] = lambda module: None,
    parametrized: bool = False,
    source: str = "config_list",
    pointer: str = "/config_list",
    line: Callable[[str], int | None] = lambda pointer: None,
) -> list[Selected]:
    """Return the layers that ``entries`` select, in the model's order.

    A module reachable under several names is selected once, under its first name.

    Args:
        model: where to look.
        entries: the ``config_list``, checked by itself.
        default_types: what ``default`` stands for.
        needs_weight: says whether the layers of an entry must have a weight.
        check: says why the algorithm cannot work on a layer, None if it can.
        parametrized: whether a weight may be one that ``torch.nn.utils.parametrize`` computes.
        source: what the message calls the configuration.
        pointer: where the list is in it.
        line: the line of a pointer, for a configuration from a file.

    Raises:
        ConfigError: names or types that the model does not have, entries that match nothing,
            layers without a weight or refused by ``check``; all of them at once.
    """
    problems: list[Problem] = []

    def report(where: str, message: str, allowed: str | None, hint: str | None = None) -> None:
        problems.append(Problem(message, pointer + where, line(pointer + where), allowed, hint))

    layers = dict(model.named_modules())
    first_names = {id(module): name for name, module in layers.items()}
    every_name = {
        name: first_names[id(module)]
        for name, module in model.named_modules(remove_duplicate=False)
    }
    types = {name: _class_names(module) for name, module in layers.items()}
    names = Names(every_name, types)
    present = sorted({cls for classes in types.values() for cls in classes})
    chosen: dict[str, tuple[Mapping[str, Any], int]] = {}
    for index, entry in enumerate(entries):
        wanted_types = _expand(entry.get("op_types"), default_types)
        wanted_names = None
        if "op_names" in entry:
            wanted_names = set()
            among = wanted_types
            if among is None and not entry.get("exclude", False):
                among = set(default_types)
            for place, name in enumerate(entry["op_names"]):
                try:
                    wanted_names |= names.called(name, among)
                except NoLayerError as missing:
                    where = f"/{index}/op_names/{place}"
                    report(where, missing.message, missing.allowed, missing.hint)
        for place, name in enumerate(entry.get("op_types", ())):
            if name != "default" and name not in present:
                report(
                    f"/{index}/op_types/{place}",
                    f'the model has no layer of type "{name}"',
                    f"it has: {', '.join(sorted({classes[0] for classes in types.values()}))}",
                    nearest(name, present),
                )
        matched = [
            name
            for name in layers
            if (wanted_types is None or wanted_types.intersection(types[name]))
            and (wanted_names is None or name in wanted_names)
        ]
        if not matched and not any(p.pointer.startswith(f"{pointer}/{index}/") for p in problems):
            report(f"/{index}", "this entry matches no layer of the model", _offer(types))
        chosen.update(dict.fromkeys(matched, (entry, index)))
    faults: dict[int, list[str]] = {}
    for name, (entry, index) in chosen.items():
        if entry.get("exclude", False):
            continue
        fault = None
        if needs_weight(entry) and not (parametrized and is_parametrized(layers[name])):
            fault = weight_fault(layers[name], name)
        if fault is None and (refused := check(layers[name])):
            fault = f'layer "{name}": {refused}'
        if fault:
            faults.setdefault(index, []).append(fault)
    for index, messages in faults.items():
        more = f" (and {len(messages) - 1} more layers)" if len(messages) > 1 else ""
        report(f"/{index}", messages[0] + more, _offer(types))
    if entries and not problems and all(e.get("exclude", False) for e, _ in chosen.values()):
        report("", "all that entries match is excluded: nothing is left to compress", None)
    if problems:
        raise ConfigError(problems, source)
    return [
        Selected(name, layers[name], *chosen[name])
        for name in layers
        if name in chosen and not chosen[name][0].get("exclude", False)
    ]


def weight_fault(module: nn.Module, name: str) -> str | None:
    """Return why ``module`` has no weight of its own to work on, or None if it has one."""
    label = f'layer "{name}" ({type(module).__name__})'
    weight = module._parameters.get("weight")
    if weight is None:
        if computed := _computed_by(module):
            return f"the weight of {label} is computed by {computed[0]}; {computed[1]} first"
        inside = [
            f"{name}.{inner}" if name else inner
            for inner, child in module.named_modules()
            if inner and child._parameters.get("weight") is not None
        ]
        hint = f"; inside it are: {', '.join(inside[:4])}" if inside else ""
        return f"{label} has no weight of its own{hint}"
    if isinstance(weight, UninitializedParameter):
        return f"the weight of {label} has no shape yet; run one batch through the model first"
    if not weight.is_floating_point():
        return f"the weight of {label} is {weight.dtype}, not floating point"
    return None


def _computed_by(module: nn.Module) -> tuple[str, str] | None:
    """Return what of PyTorch's computes the weight, and what makes a plain one of it; or None."""
    if "weight" in getattr(module, "parametrizations", {}):
        return "torch.nn.utils.parametrize", 'remove_parametrizations(layer, "weight")'
    own = module._parameters
    if "weight_g" in own and "weight_v" in own:
        return "torch.nn.utils.weight_norm", "torch.nn.utils.remove_weight_norm(layer)"
    if "weight_orig" in own:
        if "weight_mask" in module._buffers:
            return "torch.nn.utils.prune", 'torch.nn.utils.prune.remove(layer, "weight")'
        return "torch.nn.utils.spectral_norm", "torch.nn.utils.remove_spectral_norm(layer)"
    return None


def _class_names(module: nn.Module) -> list[str]:
    classes = [c for c in type(module).__mro__ if issubclass(c, nn.Module) and c is not nn.Module]
    return list(dict.fromkeys(cls.__name__ for cls in classes)) or ["Module"]


def _expand(op_types: Sequence[str] | None, default_types: Sequence[str]) -> set[str] | None:
    if op_types is None:
        return None
    return {
        name for given in op_types for name in (default_types if given == "default" else (given,))
    }


def _offer(types: Mapping[str, list[str]]) -> str:
    return f"the model has: {count(classes[0] for classes in types.values())}"
