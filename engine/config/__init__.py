"""Reads configurations from YAML, JSON or Python and says everything that is wrong with them.

``read`` gives a Document, ``check`` what a whole configuration means, ``check_entries`` and
``check_composed`` the same for an algorithm that is constructed in Python. None of them imports
torch or a plugin's code.
"""

from __future__ import annotations

from engine.config.check import Extension, Settings, check
from engine.config.document import Document
from engine.config.entries import Composed, check_composed, check_entries
from engine.config.reading import read
from engine.config.search import Search, check_search, is_automatic

__all__ = [
    "Composed",
    "Document",
    "Extension",
    "Search",
    "Settings",
    "check",
    "check_composed",
    "check_entries",
    "check_search",
    "is_automatic",
    "read",
]
