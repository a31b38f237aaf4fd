"""The one door up: an algorithm's ``export_model`` asks here for what writes files.

Exports know every room below them, so that no room below may import them. Their methods on pruners
and quantizers are for people, who call what they have in their hands.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any


def exports() -> Any:
    """Return ``engine.export``, imported when a file is written and not before."""
    return import_module("engine.export")
