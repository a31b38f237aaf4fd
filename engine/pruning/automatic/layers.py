"""The layers that a search gives sparsities to, as units."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import nn

from engine import speedup
from engine.errors import ConfigError, Problem
from engine.pruning import FilterPruner, bound_groups
from engine.pruning.automatic.cost import Unit
from engine.pruning.automatic.planned import PlannedPruner
from engine.pruning.pruner import Pruner


def removes_filters(base: Pruner) -> bool:
    """Return whether a pruner removes whole filters: its configuration says so, or its class."""
    schema = base.plugin.schema if base.plugin is not None else {}
    return isinstance(base, FilterPruner) or "dependency_aware" in schema.get("properties", {})


def find_units(
    pruner: PlannedPruner, example: tuple[Any, Mapping[str, Any] | None] | None
) -> list[Unit]:
    """Return what gets a sparsity of its own, in the model's order.

    Args:
        pruner: with the selected layers.
        example: positional and keyword arguments to find bound layers with; None: each layer is a
            unit by itself.

    Raises:
        ConfigError: the model does not run on the example, or no filter of any layer can go.
    """
    if example is None:
        owners: dict[int, Any] = {}
        for wrapper in pruner.wrappers:  # layers that share a weight have one mask
            owners.setdefault(id(wrapper.weight), []).append(wrapper)
        return [Unit(shared[0].name, tuple(shared), None) for shared in owners.values()]
    try:
        groups = bound_groups(pruner.bound_model, pruner.wrappers, *example)
    except Exception as error:
        problem = Problem(
            f"the model does not run on the example inputs: {type(error).__name__}: {error}",
            "/dummy_input",
        )
        raise ConfigError([problem], type(pruner).__name__) from error
    units = [Unit(g.members[0].name, tuple(g.members), g) for g in groups if g.count > 1]
    if not units:
        problem = Problem(
            "no filter of the selected layers can be removed: the model's output, or something "
            "that no rule is known for, needs all of them",
            "/config_list",
        )
        raise ConfigError([problem], type(pruner).__name__)
    places = {id(wrapper): place for place, wrapper in enumerate(pruner.wrappers)}
    return sorted(units, key=lambda unit: places[id(unit.wrappers[0])])


def smaller_copy(model: nn.Module, args: Any, kwargs: Mapping[str, Any] | None) -> nn.Module:
    """Return a copy of a masked model without the channels that are zero."""
    small = copy.deepcopy(model)
    speedup.speedup(small, () if args is None else args, kwargs)
    return small
