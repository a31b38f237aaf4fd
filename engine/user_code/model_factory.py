"""A model from ``module:factory``, as a person names it on the command line or in a file."""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING

from engine.errors import EngineError, nearest
from engine.user_code.shadow import clash

if TYPE_CHECKING:
    from torch import nn


def build(target: str, where: str = "--model") -> nn.Module:
    """Return the model that ``module:factory`` makes.

    Args:
        target: the factory takes no arguments and returns the model. The module is looked for in
            the current folder, too.
        where: what a message calls the place where ``target`` stands.

    Raises:
        EngineError: there is no such module or factory, or it fails or returns no model.
    """
    module_name, colon, factory_name = target.partition(":")
    if not (module_name and colon and factory_name):
        raise EngineError(f'{where} needs module:factory, such as my_net:build, got "{target}"')
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
    factory = getattr(module, factory_name, None)
    if not callable(factory):
        near = nearest(factory_name, vars(module))
        hint = f'\n  did you mean "{near}"?' if near else ""
        raise EngineError(f'{where}: {module_name} has no function "{factory_name}"{hint}')
    try:
        model = factory()
    except (Exception, SystemExit) as error:
        raise EngineError(f"{where}: {target} failed: {type(error).__name__}: {error}") from error
    from torch import nn

    if not isinstance(model, nn.Module):
        raise EngineError(
            f"{where}: {target} returned a {type(model).__name__}, an nn.Module is needed"
        )
    return model
