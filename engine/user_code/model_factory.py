"""A model from ``module:factory``, as a person names it on the command line or in a file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.errors import EngineError
from engine.user_code.named import named

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
    factory = named(target, where, "module:factory")
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
