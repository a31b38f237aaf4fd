"""What ``module:function`` names on the command line or in a file."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

from engine.errors import EngineError, nearest
from engine.user_code.shadow import clash


def named(target: str, where: str, form: str = "module:function") -> Callable[..., Any]:
    """Return the function that ``target`` names.

    Args:
        target: ``module:function``. The module is looked for in the current folder, too.
        where: what a message calls the place where ``target`` stands.
        form: what a message calls the form.

    Raises:
        EngineError: there is no such module or function.
    """
    module_name, colon, name = target.partition(":")
    if not (module_name and colon and name):
        what = form.partition(":")[2]
        example = "my_net:build" if what == "factory" else f"my_net:{where.strip('-')}"
        raise EngineError(f'{where} needs {form}, such as {example}, got "{target}"')
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    both = clash(module_name)
    if both is not None:
        raise EngineError(
            f"{where}: {module_name} imports engine, and {both.file} and this package are both "
            f"called that\n  rename {both.file.name}"
        )
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        # Whatever the user's module raises while it is imported.
        raise EngineError(
            f'{where}: the module "{module_name}" cannot be imported: '
            f"{type(error).__name__}: {error}"
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        near = nearest(name, vars(module))
        hint = f'\n  did you mean "{near}"?' if near else ""
        raise EngineError(f'{where}: {module_name} has no function "{name}"{hint}')
    return function  # type: ignore[no-any-return]
