"""Every installed extension by its class name: ``from engine.extensions import DependencyAware``.

Classes are found by entry point and imported when they are first asked for. An unknown name is an
ImportError or an AttributeError with the nearest one.
"""

from __future__ import annotations

from engine.plugins.registry import EXTENSIONS
from engine.plugins.registry.names import of

__getattr__, __dir__ = of(EXTENSIONS, __name__)
