"""A digest inside a file: what was changed since it was written is refused.

A file of ``torch.save`` is a zip archive, which may end in a comment: there the SHA-256 of all that
comes before it stands, and whoever else reads the file does not see it. In a safetensors file it is
a field of the metadata, whose own 64 characters count as zeros; in a file of JSON it is a field.
Files without one, such as those of versions before, are read as they are.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from engine.errors import CheckpointError

_MARK = b"engine-sha256:"
_HEX = 64
_NONE = "0" * _HEX
#: What a safetensors file has in its metadata before it is signed.
FIELD = {"sha256": _NONE}
_IN_HEADER = re.compile(rb'"sha256"\s*:\s*"([0-9a-f]{64})"')
_CHUNK = 1 << 20
#: No header of a file of ours is longer; safetensors itself allows 100 MB.
_LONGEST_HEADER = 100_000_000


def sign_archive(path: Path) -> None:
    """Put the digest of a file that ``torch.save`` wrote at its end, as the archive's comment."""
    length = len(_MARK) + _HEX
    with path.open("rb+") as stream:
        stream.seek(-2, 2)
        if stream.read(2) != b"\0\0":  # a comment already, or no archive
            return
        stream.seek(-2, 2)
        stream.write(length.to_bytes(2, "little"))
        size = stream.tell()
        stream.seek(0)
        digest = _digest(stream, size)
        stream.seek(0, 2)
        stream.write(_MARK + digest.encode())


def sign_safetensors(path: Path) -> None:
    """Fill in the digest of a safetensors file that was written with :data:`FIELD`."""
    with path.open("rb+") as stream:
        place = _place_in_header(stream)
        if place is None:
            return
        digest = _with_zeros(stream, place)
        stream.seek(place)
        stream.write(digest.encode())


def verify(path: Path) -> None:
    """Raise CheckpointError where a file is not what its digest says; without one do nothing.

    Raises:
        CheckpointError: the file was changed or damaged since it was written.
        OSError: it cannot be read.
    """
    with path.open("rb") as stream:
        size = stream.seek(0, 2)
        tail = len(_MARK) + _HEX
        start = max(size - 2 * tail, 0)
        stream.seek(start)
        end = stream.read()
        mark = end.rfind(_MARK)
        if mark >= 0:  # elsewhere than where it was put, the file was cut off, or longer
            stream.seek(0)
            _refuse_other(path, _digest(stream, start + mark), end[mark + len(_MARK) :])
            return
        place = _place_in_header(stream)
        if place is not None:
            stream.seek(place)
            stated = stream.read(_HEX)
            if stated != _NONE.encode():
                _refuse_other(path, _with_zeros(stream, place), stated)


def digest_of(document: Mapping[str, Any]) -> str:
    """Return the digest that a file of JSON keeps beside its other fields, as ``sha256``."""
    text = json.dumps(json.loads(json.dumps(document)), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _refuse_other(path: Path, found: str, stated: bytes) -> None:
    if found.encode() != stated:
        raise CheckpointError(
            f"{path} is damaged: its content is not what was written (SHA-256 differs)\n"
            "  copy it again, or export it again"
        )


def _place_in_header(stream: BinaryIO) -> int | None:
    """Return where the digest of a safetensors file is; None of another, or without a digest."""
    stream.seek(0)
    length = int.from_bytes(stream.read(8), "little")
    if not 2 <= length <= _LONGEST_HEADER:
        return None
    header = stream.read(length)
    found = _IN_HEADER.search(header) if header.startswith(b"{") else None
    return None if found is None else 8 + found.start(1)


def _with_zeros(stream: BinaryIO, place: int) -> str:
    """Return the digest of a whole file in which zeros stand at ``place``."""
    stream.seek(0)
    digest = hashlib.sha256(stream.read(place))
    digest.update(_NONE.encode())
    stream.seek(place + _HEX)
    while chunk := stream.read(_CHUNK):
        digest.update(chunk)
    return digest.hexdigest()


def _digest(stream: BinaryIO, size: int) -> str:
    digest = hashlib.sha256()
    while size > 0 and (chunk := stream.read(min(_CHUNK, size))):
        digest.update(chunk)
        size -= len(chunk)
    return digest.hexdigest()
