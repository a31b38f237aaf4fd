"""YAML text to plain data and the line of each value.

Built from the parser's events, one by one and without recursion, because the loaders of PyYAML
keep the last of two equal keys, read ``1e-4`` as text and ``no`` as false (YAML 1.1), expand
aliases without limit, and forget where a value stood. Plain scalars follow YAML 1.2.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from engine.config.plain import MAX_DEPTH, MAX_VALUES, TooLargeError, UnreadableError, escape, show
from engine.errors import Problem

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TAG = "tag:yaml.org,2002:"
_TAGS = {_TAG + word for word in ("str", "int", "float", "bool", "null", "map", "seq")}
_WORDS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_INTEGER = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_SPECIAL = re.compile(r"([-+]?)\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


class _Frame:
    """A mapping or list that is being filled."""

    def __init__(self, value: Any, pointer: str, anchor: str | None, start: int) -> None:
        self.value = value
        self.pointer = pointer
        self.anchor = anchor
        self.start = start  # values read before this one; the difference is its size
        self.key: str | None = None
        self.has_key = False
        self.merged: list[Any] = []


class _Builder:
    def __init__(self) -> None:
        self.root: Any = None
        self.documents = 0
        self.lines: dict[str, int] = {}
        self.problems: list[Problem] = []
        self._stack: list[_Frame] = []
        self._anchors: dict[str, tuple[Any, int] | None] = {}
        self._count = 0

    def feed(self, event: yaml.Event) -> None:
        line = event.start_mark.line + 1 if event.start_mark else 1
        if isinstance(event, yaml.ScalarEvent):
            self._check_tag(event.tag, line)
            self._add(self._scalar(event, line), line, event.anchor)
        elif isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
            self._check_tag(event.tag, line)
            self._open({} if isinstance(event, yaml.MappingStartEvent) else [], line, event.anchor)
        elif isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            self._close(line)
        elif isinstance(event, yaml.AliasEvent):
            self._alias(str(event.anchor), line)
        elif isinstance(event, yaml.DocumentStartEvent):
            self.documents += 1
            if self.documents > 1:
                self.fail("a second document begins here", line, "a file holds one configuration")

    def fail(self, message: str, line: int, allowed: str | None = None) -> None:
        """Stop reading: what follows cannot be understood."""
        pointer = self._stack[-1].pointer if self._stack else ""
        raise UnreadableError([*self.problems, Problem(message, pointer, line, allowed)])

    def _check_tag(self, tag: str | None, line: int) -> None:
        if tag is not None and tag != "!" and tag not in _TAGS:
            short = tag.replace(_TAG, "!!")
            needs = "a configuration holds text, numbers, true, false, lists and mappings"
            self.fail(f"the tag {show(short)} is not allowed", line, needs)

    def _scalar(self, event: yaml.ScalarEvent, line: int) -> Any:
        quoted = not event.implicit[0] and event.tag is None
        if quoted or event.tag in ("!", _TAG + "str"):
            return event.value
        try:
            return resolve(event.value)
        except ValueError:
            self.fail("the number has too many digits", line)

    def _count_up(self, number: int) -> None:
        self._count += number
        if self._count > MAX_VALUES:
            raise TooLargeError

    def _open(self, value: Any, line: int, anchor: str | None) -> None:
        if self._stack and isinstance(self._stack[-1].value, dict) and not self._stack[-1].has_key:
            self.fail(f"{show(value)} stands where a key belongs", line, "keys are names")
        self._count_up(1)
        pointer = self._place(line)
        if len(self._stack) >= MAX_DEPTH:
            raise TooLargeError
        if anchor is not None:
            self._anchors[anchor] = None  # known, but not complete
        self._stack.append(_Frame(value, pointer, anchor, self._count))

    def _close(self, line: int) -> None:
        frame = self._stack.pop()
        for merged in frame.merged:
            for source in merged if isinstance(merged, list) else [merged]:
                if not isinstance(source, dict):
                    self.fail('"<<" merges mappings only', line)
                for key, value in source.items():
                    frame.value.setdefault(key, value)
        if frame.anchor is not None:
            self._anchors[frame.anchor] = (frame.value, self._count - frame.start + 1)
        self._attach(frame.value)

    def _alias(self, anchor: str, line: int) -> None:
        if anchor not in self._anchors:
            self.fail(f"the alias *{anchor} stands for nothing", line)
        known = self._anchors[anchor]
        if known is None:
            self.fail(f"the alias *{anchor} stands inside of what it stands for", line)
            return
        value, size = known
        self._count_up(size - 1)
        self._add(value, line, None)

    def _add(self, value: Any, line: int, anchor: str | None) -> None:
        self._count_up(1)
        frame = self._stack[-1] if self._stack else None
        if frame is not None and isinstance(frame.value, dict) and not frame.has_key:
            self._key(frame, value, line)
        else:
            self._place(line)
            self._attach(value)
        if anchor is not None:
            self._anchors[anchor] = (value, 1)

    def _key(self, frame: _Frame, key: Any, line: int) -> None:
        if not isinstance(key, str):
            message = f"the key {show(key)} is not text"
            self.problems.append(Problem(message, frame.pointer, line, "keys are names, in quotes"))
            key = str(key)
        pointer = f"{frame.pointer}/{escape(key)}"
        if key in frame.value and key != "<<":
            first = self.lines.get(pointer)
            message = f"{show(key)} is given twice, first on line {first}"
            self.problems.append(Problem(message, pointer, line))
        else:
            self.lines[pointer] = line
        frame.key, frame.has_key = key, True

    def _place(self, line: int) -> str:
        """Return the pointer of the value that comes next, and note its line."""
        if not self._stack:
            self.lines[""] = line
            return ""
        frame = self._stack[-1]
        if isinstance(frame.value, list):
            pointer = f"{frame.pointer}/{len(frame.value)}"
            self.lines[pointer] = line
            return pointer
        return f"{frame.pointer}/{escape(str(frame.key))}"

    def _attach(self, value: Any) -> None:
        if not self._stack:
            self.root = value
            return
        frame = self._stack[-1]
        if isinstance(frame.value, list):
            frame.value.append(value)
        elif frame.key == "<<":
            frame.merged.append(value)
            frame.has_key = False
        else:
            frame.value[frame.key] = value
            frame.has_key = False


def resolve(text: str) -> Any:
    """Return what a plain scalar means in YAML 1.2: null, a boolean, a number, or its text."""
    if text in _WORDS:
        return _WORDS[text]
    if text[0] not in "+-.0123456789":
        return text
    if _INTEGER.fullmatch(text):
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
    if _FLOAT.fullmatch(text):
        return float(text)
    special = _SPECIAL.fullmatch(text)
    if special:
        return float("nan") if special[3] else float(f"{special[1]}inf")
    return text


def load(text: str) -> tuple[Any, dict[str, int]]:
    """Return the data of a YAML text and the line of each JSON Pointer in it.

    Raises:
        UnreadableError: the text is not YAML, holds a tag, a key twice or a key that is not text.
        TooLargeError: it is nested too deeply or its aliases expand to too many values.
    """
    builder = _Builder()
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            builder.feed(event)
    except yaml.YAMLError as error:
        if _too_deep(error):
            raise TooLargeError from None
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        line = mark.line + 1 if mark else None
        message, allowed = _explain(error, text, line)
        raise UnreadableError([*builder.problems, Problem(message, "", line, allowed)]) from None
    if builder.problems:
        raise UnreadableError(builder.problems)
    return builder.root, builder.lines


def _too_deep(error: yaml.YAMLError) -> bool:
    """Return whether the parser itself refuses the depth, as PyYAML does from 6.0.4 on.

    It reads a whole flow of brackets ahead before its first event, so that the builder's own limit,
    far lower, comes too late.
    """
    return "maximum nesting depth" in str(getattr(error, "problem", None))


def _explain(error: yaml.YAMLError, text: str, line: int | None) -> tuple[str, str | None]:
    detail = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
    here = text.splitlines()[line - 1 : line] if line else []
    if here and "\t" in here[0][: len(here[0]) - len(here[0].lstrip())]:
        return "a tab indents this line", "YAML is indented with spaces"
    if "special characters" in detail or "control characters" in detail:
        return "a control character stands in the text", "a configuration is plain text"
    return f"not YAML: {detail}", None
