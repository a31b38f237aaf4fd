"""Checks an automatic experiment: its search spaces, and every value that they may lead to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from engine.config import space
from engine.config.check import Settings, check
from engine.config.choose import errors, fail
from engine.config.document import Document
from engine.config.messages import Found, Words
from engine.config.plain import steps
from engine.config.schema import shared_definition
from engine.config.space import Space
from engine.errors import ConfigError

#: Other names of a proposer.
PROPOSERS = {"grid": "sequence", "hyperopt": "tpe", "spearmint": "gp", "bohb": "hyperband"}
#: Proposers that know one objective only.
_ONE_OBJECTIVE = ("cmaes", "hyperband")
_NO_CHOICES = ("cmaes",)


class Search(NamedTuple):
    """What an automatic experiment means.

    Attributes:
        settings: its configuration with one value of each space, for what the algorithm is.
        spaces: the search spaces by their JSON Pointer in the document.
        proposer: the proposer, aliases resolved.
        directions: ``"max"`` or ``"min"`` for each objective.
        labels: names of the numbers after the score.
    """

    settings: Settings
    spaces: dict[str, Space]
    proposer: str
    directions: tuple[str, ...]
    labels: tuple[str, ...]


def is_automatic(document: Document) -> bool:
    """Return whether an experiment has something to search: a search space."""
    data = document.data
    section = data.get("compression") if isinstance(data, dict) else None
    return next(space.find(section), None) is not None


def check_search(document: Document) -> Search:
    """Return what an automatic experiment means.

    The algorithm's rules are checked for both ends of each range, for a value inside a range of
    floats, and for each choice.

    Raises:
        ConfigError: something is wrong; all problems at once.
        PluginError: the schema of the algorithm itself cannot be used.
    """
    data: Any = document.data
    found: list[Found] = []
    words = Words(None, "an experiment")
    found += words.found(errors(shared_definition("experiment"), data))
    well_formed = not found
    spaces: dict[str, Space] = {}
    wrong: dict[str, Any] = {}
    for pointer, value in space.find(data.get("compression"), "/compression"):
        fixed = next((step for step in steps(pointer) if step in space.FIXED), None)
        if fixed is not None:
            message = f'a search space stands in "{fixed}", which cannot be searched'
            found.append(Found(pointer, message, "settings and arguments of an algorithm can"))
        one = space.read(value, pointer, found) if fixed is None else None
        if one is not None:
            spaces[pointer] = one
        else:
            wrong[pointer] = value
    if not spaces and not found:
        allowed = 'a value such as 0.5 becomes {"range": [0.2, 0.9], "type": "float"}'
        message = "there is nothing to search: no value of compression is a search space"
        found.append(Found("/compression", message, allowed))
    found += _expand_flags(data.get("compression"))
    if well_formed:
        found += _objectives(data, () if wrong else tuple(spaces.values()))
    settings = _every_value(document, spaces, wrong, found)
    if found or settings is None:
        fail(found, document)
    target = data.get("target", "max")
    labels = data.get("resource_args", {}).get("multi_res_labels", ())
    proposer = data.get("proposer", "random")
    return Search(
        settings,
        spaces,
        PROPOSERS.get(proposer, proposer),
        tuple(target) if isinstance(target, list) else (target,),
        tuple(labels),
    )


def _every_value(
    document: Document, spaces: dict[str, Space], wrong: dict[str, Any], found: list[Found]
) -> Settings | None:
    """Return the settings of the first values, having checked that all values would do.

    What is wrong is added to ``found``, once for each place. In the place of a search space that is
    wrong itself one of its values stands, and what that leads to is not told.
    """
    probes = {pointer: one.probes() for pointer, one in spaces.items()}
    stand_ins = {pointer: _first_of(value.get("range")) for pointer, value in wrong.items()}
    settings = None
    for turn in range(max(map(len, probes.values()), default=1)):
        values = {pointer: each[turn % len(each)] for pointer, each in probes.items()}
        data = space.replace(document.data, {**values, **stand_ins})
        try:
            checked = check(
                Document(data, document.source, document._read_lines, document._origins)
            )
            settings = settings or checked
        except ConfigError as error:
            told = {each.pointer for each in found}
            found += [
                Found(each.pointer, each.message, each.allowed, each.suggestion)
                for each in error.problems
                if each.pointer not in told and not _is_inside(each.pointer, wrong)
            ]
    return settings


def _first_of(given: Any) -> Any:
    return given[0] if isinstance(given, list) and given else 0.5


def _is_inside(pointer: str, places: Iterable[str]) -> bool:
    return any(pointer == place or pointer.startswith(f"{place}/") for place in places)


def _expand_flags(section: Any) -> list[Found]:
    entries = section.get("config_list") if isinstance(section, dict) else None
    return [
        Found(
            f"/compression/config_list/{index}/expand_op_names", "this is not true or false", None
        )
        for index, entry in enumerate(entries if isinstance(entries, list) else ())
        if isinstance(entry, dict) and not isinstance(entry.get("expand_op_names", True), bool)
    ]


def _objectives(data: dict[str, Any], spaces: Sequence[Space]) -> list[Found]:
    """Return where proposer, target, labels and search spaces do not fit together."""
    found = []
    given = data.get("proposer", "random")
    proposer = PROPOSERS.get(given, given)
    target = data.get("target", "max")
    arguments = data.get("resource_args", {})
    count = len(target) if isinstance(target, list) else 1
    labels = arguments.get("multi_res_labels", [])
    if count > len(labels) + 1:
        message = f"target has {count} objectives, a result has {len(labels) + 1} numbers"
        allowed = "the first is for the score, each further one for one of the multi_res_labels"
        found.append(Found("/target", message, allowed))
    if count > 1 and proposer in _ONE_OBJECTIVE:
        allowed = "several objectives are for: random, sequence, tpe, gp, nsga2"
        found.append(Found("/proposer", f"{given} takes one objective, {count} are given", allowed))
    if count > 1 and "early_stop" in arguments:
        message = "early_stop compares one score, and there are several objectives"
        found.append(
            Found("/resource_args/early_stop", message, "leave it out, or give one target")
        )
    if proposer in _NO_CHOICES and spaces and all(one.kind == "choice" for one in spaces):
        message = f"{given} searches numbers, and all search spaces are choices"
        found.append(Found("/proposer", message, "tpe or random do choices"))
    return found
