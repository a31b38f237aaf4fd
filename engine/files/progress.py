"""The progress of a long measurement in a JSON file, refused where it belongs to another one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from engine.errors import CheckpointError
from engine.files import write_whole
from engine.files.digest import digest_of
from engine.files.plain import says

_FORMAT = 2
#: Of versions before: without a digest.
_UNSIGNED = 1


class Words(NamedTuple):
    """What messages call the file.

    Attributes:
        kind: "X is not {kind}".
        other: "X belongs to {other}".
        damaged: what to do about a file that cannot be read.
        foreign: what to do about one of other settings.
    """

    kind: str
    other: str
    damaged: str
    foreign: str


class ProgressFile:
    """One file: ``format``, ``settings``, and what was measured.

    Args:
        path: the file; it need not be there.
        settings: plain values that the measurements depend on.
        words: what messages call it.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], words: Words) -> None:
        self._path = path
        self._settings = json.loads(json.dumps(dict(settings)))
        self._words = words

    def write(self, content: Mapping[str, Any]) -> None:
        """Write the file, whole or not at all."""
        document = {"format": _FORMAT, "settings": self._settings, **content}
        text = json.dumps({**document, "sha256": digest_of(document)}, indent=1) + "\n"
        write_whole(self._path, lambda temporary: temporary.write_text(text, encoding="utf-8"))

    def read(self) -> dict[str, Any] | None:
        """Return what the file holds; None where there is none.

        Raises:
            CheckpointError: it is damaged, of another format, or of other settings.
        """
        if not self._path.exists():
            return None
        try:
            document = json.loads(self._path.read_text(encoding="utf-8"))
            known, settings = document["format"], document["settings"]
            differing = [key for key in self._settings if settings.get(key) != self._settings[key]]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise self.damaged(error) from error
        if not says(known, _FORMAT) and not says(known, _UNSIGNED):
            raise CheckpointError(f"{self._path} has format {known!r}; this engine reads {_FORMAT}")
        if differing:
            now = self._settings
            lines = [
                f"  {key}: {_short(settings.get(key))} in the file, {_short(now[key])} now"
                for key in differing
            ]
            first = f"{self._path} belongs to {self._words.other}"
            raise CheckpointError("\n".join([first, *lines, f"  {self._words.foreign}"]))
        assert isinstance(document, dict)
        stated = document.pop("sha256", None)
        if known == _FORMAT and stated != digest_of(document):
            raise self.damaged(ValueError("it is not what was written (SHA-256 differs)"))
        return document

    def damaged(self, error: Exception) -> CheckpointError:
        """Return the error for a file whose content makes no sense."""
        return CheckpointError(
            f"{self._path} is not {self._words.kind}: {type(error).__name__}: {error}\n"
            f"  {self._words.damaged}"
        )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
