"""Fields of a file that say what it is, in which somebody else may have put anything."""

from __future__ import annotations


def says(value: object, expected: int | str) -> bool:
    """Return whether a field is just ``expected``: a tensor in its place answers with tensors."""
    return type(value) is type(expected) and value == expected
