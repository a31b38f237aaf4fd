"""Reading a configuration: a YAML or JSON file, or what was passed in Python."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from engine.config.document import Document
from engine.config.pipe import is_pipe, read_pipe
from engine.config.plain import MAX_DEPTH, MAX_VALUES, TooLargeError, UnreadableError, plain
from engine.errors import ConfigError, Problem

#: A larger file is not a configuration.
MAX_BYTES = 1_000_000


def read(source: str | os.PathLike[str] | Mapping[str, Any] | Sequence[Any] | Document) -> Document:
    """Return the configuration that ``source`` holds: a YAML or JSON file, a mapping or a list.

    A file of the old format (a mapping from algorithm name to ``config:`` entries) is translated,
    with one DeprecationWarning that shows what to write instead.

    Raises:
        ConfigError: the file cannot be read, is not YAML or JSON, or holds more than plain data.
    """
    if isinstance(source, Document):
        return source
    if isinstance(source, str | os.PathLike):
        return _modern(_read_file(source))
    if isinstance(source, Mapping):
        return _modern(from_python(source, "configuration"))
    if isinstance(source, list | tuple):
        return from_python(source, "config_list")
    message = f"an object of type {type(source).__name__} is no configuration"
    raise ConfigError([Problem(message, "", None, "a file's path, a mapping or a list is")])


def from_python(value: Any, source: str, pointer: str = "") -> Document:
    """Return a Document of a Python value. ConfigError unless it is made of plain data."""
    try:
        data, problems = plain(value, pointer)
    except TooLargeError:
        raise ConfigError([_too_large(pointer)], source) from None
    if problems:
        raise ConfigError(problems, source)
    return Document(data, source)


def _too_large(pointer: str = "") -> Problem:
    allowed = f"at most {MAX_DEPTH} levels and {MAX_VALUES:,} values, aliases expanded"
    return Problem("the configuration is nested too deeply or too large", pointer, None, allowed)


def _read_file(path: str | os.PathLike[str]) -> Document:
    source = os.fspath(path)
    source = source if isinstance(source, str) else os.fsdecode(source)
    text = _read_text(source)
    stripped = text.lstrip()
    if not stripped:
        raise ConfigError([Problem("the file is empty")], source)
    suffix = os.path.splitext(source)[1].lower()
    is_json = suffix == ".json" or (suffix not in (".yaml", ".yml") and stripped[0] in "{[")
    lines: Callable[[], Mapping[str, int]]
    try:
        if is_json:
            from engine.config import json_reader

            data = json_reader.load(text)
            lines = lambda: json_reader.lines(text)  # noqa: E731
        else:
            from engine.config import yaml_reader

            data, found = yaml_reader.load(text)
            lines = lambda: found  # noqa: E731
        data, problems = plain(data)
    except UnreadableError as error:
        raise ConfigError(error.problems, source) from None
    except TooLargeError:
        raise ConfigError([_too_large()], source) from None
    document = Document(data, source, lines)
    if problems:
        problems = [p._replace(line=document.line(p.pointer)) for p in problems]
        raise ConfigError(problems, source)
    if not isinstance(data, dict):
        kind = "a list" if isinstance(data, list) else "nothing" if data is None else "one value"
        needs = "it needs a mapping, with the keys compressor and config_list, for one"
        raise ConfigError([Problem(f"the file holds {kind}", "", None, needs)], source)
    return document


def _read_text(source: str) -> str:
    try:
        # One byte more than allowed tells a file that is too large, whatever stat says of it.
        if os.path.isdir(source):
            raise ConfigError([Problem("this is a folder", "", None, "a file is needed")], source)
        if is_pipe(source):
            content = read_pipe(source, MAX_BYTES + 1)
        else:
            with open(source, "rb") as file:
                content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError([Problem("there is no such file")], source) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError([Problem(f"the file cannot be read: {reason}")], source) from None
    if len(content) > MAX_BYTES:
        allowed = f"a configuration has at most {MAX_BYTES:,} bytes"
        raise ConfigError([Problem("the file is too large", "", None, allowed)], source)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError([Problem("the file is not UTF-8 text", "", line)], source) from None


def _modern(document: Document) -> Document:
    from engine.config import legacy  # few files are that old

    if not legacy.is_legacy(document.data):
        return document
    data, origins = legacy.translate(document)
    message = (
        f"{document.source} is of the format of NNI's first compression release; "
        f"today it is written as\n\n{legacy.render(data)}"
    )
    warnings.warn(message, DeprecationWarning, stacklevel=_frames_to_caller())
    return Document(data, document.source, document._read_lines, origins)


def _frames_to_caller() -> int:
    """Return the stack level of the first caller outside of the engine."""
    level = 1
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("engine."):
        frame = frame.f_back
        level += 1
    return level
