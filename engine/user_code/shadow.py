"""Whether a file beside a person's code hides this package, or what it needs, from that code.

Python looks for modules beside a script first. Many training scripts come with an ``engine.py``.
"""

from __future__ import annotations

import ast
import importlib.machinery
import os
import re
from pathlib import Path
from typing import NamedTuple

import engine

#: What a script gets when it imports this package, and what this package imports.
_NEEDED = ("engine", "plugins_builtin", "torch", "yaml", "pluggy", "jsonschema", "numpy")
_IMPORTS = re.compile(r"^\s*(?:import|from)\s+engine\b", re.MULTILINE)
#: Options with which Python does not look beside the script.
_SAFE = re.compile(r"\s-[A-Za-z]*[IP]")
#: A file of this package that no other one of its name has.
_OURS = "hookspecs.py"


class Shadow(NamedTuple):
    """A file that hides a module; ``harmless``: the script does not need what is hidden."""

    file: Path
    module: str
    harmless: bool

    @property
    def message(self) -> str:
        """What is wrong, in one sentence."""
        what = "this package" if self.module == "engine" else f"{self.module}, which engine needs,"
        return f"{self.file} hides {what} from the scripts beside it"

    @property
    def fix(self) -> str:
        """What to do about it."""
        return f"rename {self.file.name}, or put the script into another folder"


def shadow(script: Path) -> Shadow | None:
    """Return what hides this package from a script in Python, if anything does.

    It is harmless for a script that imports nothing of this package: its own ``engine`` is what it
    wants. Nothing is imported to find out.
    """
    try:
        text = script.read_bytes().decode("utf-8", errors="replace")
    except OSError:
        return None
    first = text.partition("\n")[0]
    if script.suffix != ".py" and "python" not in first:
        return None
    if os.environ.get("PYTHONSAFEPATH") or (first.startswith("#!") and _SAFE.search(first)):
        return None
    for module in _NEEDED:
        file = hiding(script.resolve().parent, module)
        if file is not None:
            mine = _imports_this_package(text, file if module == "engine" else None)
            if mine or module == "engine":
                return Shadow(file, module, harmless=not mine)
    return None


def clash(module: str) -> Shadow | None:
    """Return what a module of a person's, imported here, would want and not get.

    Here this package is the one that is called engine, so that it hides an ``engine.py`` beside the
    module. Nothing is imported to find out.
    """
    found = importlib.machinery.PathFinder.find_spec(module.partition(".")[0])
    if found is None or found.origin is None:
        return None
    script = Path(found.origin)
    file = hiding(script.parent)
    if file is None or not script.is_file() or script.suffix != ".py":
        return None
    text = script.read_bytes().decode("utf-8", errors="replace")
    return Shadow(file, "engine", harmless=False) if _IMPORTS.search(text) else None


def hiding(folder: Path, module: str = "engine") -> Path | None:
    """Return the file or package in a folder that a module's name stands for, if it is not ours."""
    found = importlib.machinery.PathFinder.find_spec(module, [os.fspath(folder)])
    if found is None or found.origin is None:  # a folder without __init__.py hides nothing
        return None
    file = Path(found.origin)
    own = (
        importlib.machinery.PathFinder.find_spec(module) if module != "engine" else engine.__spec__
    )
    origin = own.origin if own is not None else None
    if origin is not None and os.path.exists(origin) and file.samefile(origin):
        return None  # the folder is where it is installed, or this package's checkout
    if file.name == "__init__.py":
        return None if (file.parent / _OURS).exists() else file.parent
    return file


def _imports_this_package(text: str, hides: Path | None) -> bool:
    """Return whether a script asks for more of ``engine`` than the file that hides it has."""
    if not _IMPORTS.search(text):
        return False
    if hides is None or not hides.is_file():
        return True
    try:
        there = _names(ast.parse(hides.read_bytes()))
        imports = [node for node in ast.walk(ast.parse(text)) if _is_of_engine(node)]
    except (OSError, SyntaxError, ValueError):
        return True
    return not all(
        isinstance(node, ast.ImportFrom)
        and node.module == "engine"
        and {each.name for each in node.names} <= there
        for node in imports
    )


def _is_of_engine(node: ast.AST) -> bool:
    if isinstance(node, ast.Import):
        return any(each.name.partition(".")[0] == "engine" for each in node.names)
    return (
        isinstance(node, ast.ImportFrom)
        and not node.level
        and (node.module or "").partition(".")[0] == "engine"
    )


def _names(module: ast.Module) -> set[str]:
    """Return the names that a module's statements define."""
    found = {"*"}
    for node in ast.walk(module):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.alias):
            found.add((node.asname or node.name).partition(".")[0])
    return found
