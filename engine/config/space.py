"""Search spaces: ``{"range": [0.2, 0.9], "type": "float"}`` where a value would stand.

Kinds are ``float`` and ``int`` (both ends are included) and ``choice`` (the range lists values).
Optional are ``log`` (a ratio matters, not a difference), ``step`` or ``interval`` (distance of the
values), and ``n`` (how many points a grid takes of the range).
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from engine.config.messages import Found
from engine.config.plain import escape, show, steps
from engine.errors import nearest

KINDS = ("float", "int", "choice")
KEYS = ("range", "type", "log", "step", "interval", "n")
_NEEDS = (
    'a search space is {"range": [low, high], "type": "float"}, or of type "int", or '
    '{"range": [values], "type": "choice"}'
)
#: Keys of a section and of its entries that say what is searched, not what it gets.
FIXED = ("framework", "type", "compressor", "op_types", "op_names", "exclude", "expand_op_names")


class Space(NamedTuple):
    """The values that one setting may take.

    ``values`` are the choices, or the lowest and the highest number. ``step`` is the distance of
    values, ``n`` the number of points in a grid; None where they are not given.
    """

    kind: str
    values: tuple[Any, ...]
    log: bool = False
    step: float | None = None
    n: int | None = None

    def probes(self) -> list[Any]:
        """Return values that show whether all of the space is valid."""
        if self.kind != "float":
            return list(self.values)
        low, high = self.values
        # One value inside tells a float from a whole number at both ends.
        return [low, high, low + (high - low) * 0.4142]

    def grid(self) -> list[Any]:
        """Return the points of a grid: by step, by n, or 3 of a float's range and all of an int's.

        An integer's points are rounded, each once; with ``log`` points have equal ratios.
        """
        if self.kind == "choice":
            return list(self.values)
        low, high = self.values
        if self.step is not None:
            count = int((high - low) / self.step + 1e-9) + 1
            points = [low + index * self.step for index in range(count)]
        else:
            count = self.n or (3 if self.kind == "float" else int(high - low) + 1)
            shares = [index / (count - 1) if count > 1 else 0.0 for index in range(count)]
            if self.log:
                points = [low * (high / low) ** share for share in shares]
            else:
                points = [low + (high - low) * share for share in shares]
            points = [min(max(point, low), high) for point in points]
        return list(dict.fromkeys(round(p) for p in points)) if self.kind == "int" else points

    def as_dict(self) -> dict[str, Any]:
        """Return the space as a file holds it."""
        rest = {"log": self.log or None, "step": self.step, "n": self.n}
        given = {key: value for key, value in rest.items() if value is not None}
        return {"range": list(self.values), "type": self.kind, **given}


def is_space(value: Any) -> bool:
    """Return whether a value of a configuration is meant to be a search space."""
    if not isinstance(value, dict):
        return False
    kind = value.get("type")
    return "range" in value or (isinstance(kind, str) and kind in KINDS)


def find(data: Any, pointer: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each search space in ``data`` with its JSON Pointer, in the order of the document."""
    if is_space(data):
        yield pointer, data
        return
    if isinstance(data, dict):
        for key, value in data.items():
            yield from find(value, f"{pointer}/{escape(key)}")
    elif isinstance(data, list):
        for index, value in enumerate(data):
            yield from find(value, f"{pointer}/{index}")


def replace(data: Any, values: Mapping[str, Any]) -> Any:
    """Return a deep copy of ``data`` with the values at these pointers; ``""`` is all of it."""
    result = copy.deepcopy(data)
    for pointer, value in values.items():
        if not pointer:
            return copy.deepcopy(value)
        at = result
        *path, last = steps(pointer)
        for step in path:
            at = at[int(step)] if isinstance(at, list) else at[step]
        at[int(last) if isinstance(at, list) else last] = copy.deepcopy(value)
    return result


def read(value: Mapping[str, Any], pointer: str, found: list[Found]) -> Space | None:
    """Return the space that a mapping describes; None, and what is wrong in ``found``."""
    before = len(found)
    for key in value:
        if key not in KEYS:
            message = f'unknown key "{key}" of a search space'
            absent = [name for name in KEYS if name not in value]
            allowed = f"a search space allows: {', '.join(KEYS)}"
            found.append(Found(f"{pointer}/{escape(key)}", message, allowed, nearest(key, absent)))
    kind, given = value.get("type"), value.get("range")
    if kind is None:
        found.append(Found(pointer, 'the search space has no "type"', _NEEDS))
    elif kind not in KINDS:
        near = nearest(kind, KINDS) if isinstance(kind, str) else None
        allowed = f"a search space allows: {', '.join(KINDS)}"
        found.append(
            Found(f"{pointer}/type", f"{show(kind)} is not one of the choices", allowed, near)
        )
    if "range" not in value:
        if len(found) == before:
            found.append(Found(pointer, 'the search space has no "range"', _NEEDS))
    elif not isinstance(given, list):
        found.append(Found(f"{pointer}/range", f"{show(given)} is not a list", _NEEDS))
    if len(found) > before or not isinstance(given, list):
        return None
    faults = _choices(given) if kind == "choice" else _ends(given, str(kind))
    faults += [] if faults else _extras(value, given, str(kind))
    found += [fault._replace(pointer=pointer + fault.pointer) for fault in faults]
    if faults:
        return None
    step = value.get("step", value.get("interval"))
    number = {"int": int, "float": float}.get(str(kind), lambda item: item)
    return Space(
        str(kind), tuple(map(number, given)), bool(value.get("log", False)), step, value.get("n")
    )


def _choices(given: list[Any]) -> list[Found]:
    if not given:
        return [Found("/range", "the range is empty", "a choice needs at least one value")]
    written = [json.dumps(item, sort_keys=True) for item in given]
    twice = next((i for i, text in enumerate(written) if text in written[:i]), None)
    if twice is None:
        return []
    return [Found(f"/range/{twice}", f"{show(given[twice])} is given twice")]


def _ends(given: list[Any], kind: str) -> list[Found]:
    needs = f'a range of type "{kind}" is [lowest, highest]'
    if not given:
        return [Found("/range", "the range is empty", needs)]
    for index, end in enumerate(given):
        number = isinstance(end, int | float) and not isinstance(end, bool)
        if not number or (kind == "int" and end != int(end)):
            wanted = "a whole number" if kind == "int" else "a number"
            return [Found(f"/range/{index}", f"{show(end)} is not {wanted}", needs)]
    if len(given) != 2:
        hint = f'{needs}; with "type": "choice" it lists the values'
        return [Found("/range", f"the range has {len(given)} values, not 2", hint)]
    low, high = given
    if low == high:
        return [Found("/range", f"the range is empty: both ends are {show(low)}", needs)]
    if low > high:
        text = f"the range is inverted: {show(low)} is more than {show(high)}"
        return [Found("/range", text, needs, f"[{show(high)}, {show(low)}]")]
    return []


def _extras(value: Mapping[str, Any], given: list[Any], kind: str) -> list[Found]:
    extras = [key for key in KEYS[2:] if key in value]
    if kind == "choice" and extras:
        return [Found(f"/{extras[0]}", f'a choice has no "{extras[0]}"', "all its values count")]
    if "step" in value and "interval" in value:
        return [Found("/interval", '"interval" and "step" are the same: give one', None)]
    for key in ("step", "interval"):
        step = value.get(key, 1)
        whole = kind == "int"
        number = isinstance(step, int | float) and not isinstance(step, bool)
        if not number or step <= 0 or (whole and step != int(step)):
            wanted = "a whole number above 0" if whole else "a number above 0"
            return [Found(f"/{key}", f"{show(step)} is not {wanted}", None)]
        if key in value and step > given[1] - given[0]:
            text = f"{show(step)} is more than the whole range"
            return [Found(f"/{key}", text, f"{key} <= {show(given[1] - given[0])}")]
    n = value.get("n", 2)
    if not isinstance(n, int) or isinstance(n, bool) or not 2 <= n <= 10_000:
        return [Found("/n", f"{show(n)} is not a whole number from 2 on", None)]
    log = value.get("log", False)
    if not isinstance(log, bool):
        return [Found("/log", f"{show(log)} is not true or false", None)]
    if log and given[0] <= 0:
        return [Found("/range/0", f"{show(given[0])} has no logarithm", "with log: low > 0")]
    if log and ("step" in value or "interval" in value):
        return [Found("/log", "a range has either log or a step", None)]
    return []
