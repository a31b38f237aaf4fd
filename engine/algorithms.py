"""Every installed algorithm by its class name: ``from engine.algorithms import LevelPruner``.

Classes are found by entry point and imported when they are first asked for. An unknown name is an
ImportError or an AttributeError with the nearest one.
"""

from __future__ import annotations

from engine.plugins.registry import ALGORITHMS
from engine.plugins.registry.names import of

__getattr__, __dir__ = of(ALGORITHMS, __name__)
