"""What is searched: a compression section, and the places in it that get a value for each trial."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from engine.config import space
from engine.config.messages import Found
from engine.config.plain import steps
from engine.config.space import Space
from engine.errors import EngineError


class Parameter(NamedTuple):
    """One value that each trial chooses.

    ``name`` is for people and for Optuna: ``"sparsity (conv1)"``; ``pointer`` is where the value
    goes in the plan's section.
    """

    name: str
    pointer: str
    space: Space

    def labels(self) -> list[Any]:
        """Return the choices as Optuna stores them: what is no number or text as its JSON.

        Where two would be equal, such as 1 and 1.0, all are stored as JSON.
        """
        labels = [v if _is_simple(v) else json.dumps(v) for v in self.space.values]
        return (
            labels if len(set(labels)) == len(labels) else list(map(json.dumps, self.space.values))
        )

    def value(self, stored: Any) -> Any:
        """Return the configuration's value for one that Optuna stored."""
        if self.space.kind == "choice":
            return copy.deepcopy(self.space.values[self.labels().index(stored)])
        return int(stored) if self.space.kind == "int" else float(stored)

    def stored(self, value: Any) -> Any:
        """Return a value of the space as Optuna stores it."""
        if self.space.kind == "choice":
            written = list(map(json.dumps, self.space.values))
            return self.labels()[written.index(json.dumps(value))]
        return value


class Plan(NamedTuple):
    """A section with search spaces, one entry for each layer that gets values of its own."""

    section: dict[str, Any]
    parameters: tuple[Parameter, ...]

    def configuration(self, stored: Mapping[str, Any]) -> dict[str, Any]:
        """Return the section for one trial: a copy of its own, whose values are the trial's.

        Args:
            stored: the trial's parameters by name, as Optuna has them.
        """
        values = {each.pointer: each.value(stored[each.name]) for each in self.parameters}
        result: dict[str, Any] = space.replace(self.section, values)
        return result

    @classmethod
    def of(cls, section: Mapping[str, Any]) -> Plan:
        """Return the plan for a section whose entries are expanded; see :func:`expand`.

        Raises:
            EngineError: a search space is wrong, which ``engine validate`` explains.
        """
        found: list[Found] = []
        parameters: list[Parameter] = []
        names: set[str] = set()
        for pointer, given in space.find(section):
            one = space.read(given, pointer, found)
            if one is None:
                raise EngineError(f"{found[0].pointer}: {found[0].message}")
            name = _name(section, pointer)
            count = 2
            while name in names:
                name = f"{_name(section, pointer)} #{count}"
                count += 1
            names.add(name)
            parameters.append(Parameter(name, pointer, one))
        return cls(copy.deepcopy(dict(section)), tuple(parameters))


def expand(
    section: Mapping[str, Any], layers: Sequence[Sequence[str]] | None = None
) -> dict[str, Any]:
    """Return a copy of a section in which each layer that is searched has an entry of its own.

    An entry with a search space becomes one entry per name of its ``op_names``, unless
    ``expand_op_names`` is false. Other entries stay as they are, and so does their order.

    Args:
        section: the compression section.
        layers: for each entry the layers that it decides about, where a model is known: then
            entries that choose layers by type are expanded, too.
    """
    entries: list[Any] = []
    for index, entry in enumerate(section.get("config_list") or ()):
        kept = {key: value for key, value in entry.items() if key != "expand_op_names"}
        names: Sequence[str] | None = layers[index] if layers is not None else kept.get("op_names")
        searched = next(space.find(kept), None) is not None
        if names is None or not searched or not entry.get("expand_op_names", True):
            entries.append(kept)
        else:
            entries += [{**kept, "op_names": [name]} for name in names]
    result = copy.deepcopy({**section, "config_list": entries})
    if "config_list" not in section:
        del result["config_list"]
    return result


def _name(section: Mapping[str, Any], pointer: str) -> str:
    path = steps(pointer)
    if path[0] != "config_list":
        return ".".join(path)
    entry = section["config_list"][int(path[1])]
    chosen = entry.get("op_names") or entry.get("op_types") or [path[1]]
    return f"{'.'.join(path[2:])} ({', '.join(chosen)})"


def _is_simple(value: Any) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool)
