"""JSON text to plain data; the lines of its values are found only when a message needs them."""

from __future__ import annotations

import json
import re
from typing import Any

from engine.config.plain import TooLargeError, UnreadableError, escape, show
from engine.errors import Problem

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\],:]|[^\s{}\[\],:"]+')
#: What people write at the place where JSON stops understanding, and what JSON has instead.
_LOOKALIKES = (
    ("True", "JSON spells it true, not True"),
    ("False", "JSON spells it false, not False"),
    ("None", "JSON spells it null, not None"),
    ("'", "JSON quotes text with \", not with '"),
    ("#", "JSON has no comments; a .yaml file may have them"),
    ("//", "JSON has no comments; a .yaml file may have them"),
    (".", "JSON numbers begin with a digit: 0.5, not .5"),
    ("}", 'a comma before "}" is one too many'),
    ("]", 'a comma before "]" is one too many'),
)


def load(text: str) -> Any:
    """Return the data of a JSON text.

    Raises:
        UnreadableError: the text is not strict JSON, or an object has a key twice.
        TooLargeError: it is nested too deeply.
    """
    twice = False

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal twice
        result = dict(items)
        twice = twice or len(result) < len(items)
        return result

    def constant(name: str) -> Any:
        raise ValueError(f"{name} is not a finite number")

    try:
        data = json.loads(text, object_pairs_hook=pairs, parse_constant=constant)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        message = f"not JSON: {error.msg.lower()}, {place}"
        raise UnreadableError([Problem(message, "", error.lineno, _explain(error))]) from None
    except RecursionError:
        raise TooLargeError from None
    except ValueError as error:
        # Python refuses numbers of thousands of digits with a message about its own settings.
        message = str(error) if "finite" in str(error) else "a number has too many digits"
        raise UnreadableError([Problem(message)]) from None
    if twice:
        raise UnreadableError(_Positions(text).twice)
    return data


def _explain(error: json.JSONDecodeError) -> str | None:
    rest = error.doc[error.pos : error.pos + 5]
    if rest.startswith(","):
        rest = error.doc[error.pos + 1 :].lstrip()[:1]  # Python 3.13 points at the comma itself
    return next((hint for start, hint in _LOOKALIKES if rest.startswith(start)), None)


def lines(text: str) -> dict[str, int]:
    """Return the line of each JSON Pointer in a text that ``load`` has read."""
    return _Positions(text).lines


class _Positions:
    """One pass over the tokens, for places: ``json`` itself keeps none."""

    def __init__(self, text: str) -> None:
        self.lines: dict[str, int] = {"": 1}
        self.twice: list[Problem] = []
        # Of each open container: its pointer, and the key or the index that comes next.
        open_: list[tuple[str, str | int | None]] = []
        line, position, here = 1, 0, ""
        for match in _TOKEN.finditer(text):
            line += text.count("\n", position, match.start())
            position = match.start()
            token = match[0]
            if open_ and token not in ",:]}":
                parent, step = open_[-1]
                if step is None:
                    key = json.loads(token)
                    here = f"{parent}/{escape(key)}"
                    self._note(here, key, line)
                    open_[-1] = (parent, key)
                    continue
                if isinstance(step, int):
                    here = f"{parent}/{step}"
                    self.lines[here] = line
                    open_[-1] = (parent, step + 1)
            if token in "{[":
                open_.append((here, None if token == "{" else 0))
            elif token in "]}":
                open_.pop()
            elif token == "," and not isinstance(open_[-1][1], int):
                open_[-1] = (open_[-1][0], None)

    def _note(self, pointer: str, key: str, line: int) -> None:
        if pointer in self.lines:
            message = f"{show(key)} is given twice, first on line {self.lines[pointer]}"
            self.twice.append(Problem(message, pointer, line))
        else:
            self.lines[pointer] = line
