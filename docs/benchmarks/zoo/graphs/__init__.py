"""Small models that are hard to make smaller, in files by what is hard about them."""

import importlib
import pkgutil

from graphs.registry import GRAPHS, Graph

__all__ = ["GRAPHS", "Graph"]

for _theme in pkgutil.iter_modules(__path__):
    importlib.import_module(f"graphs.{_theme.name}")
