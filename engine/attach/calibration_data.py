"""The batches that an algorithm is calibrated with: given, named in a file, or missing."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from engine.errors import ConfigError, Problem
from engine.plugins.blame import describe
from engine.user_code.batches import Forward
from engine.user_code.named import named


def calibration_data(
    batches: Any, forward: Any, wanted: str, compressor: object
) -> tuple[Iterable[Any] | None, Forward | None]:
    """Return batches and what runs the model with one of them.

    Args:
        batches: as given to a compressor: to be gone through, or "module:function".
        forward: a function, or "module:function".
        wanted: "required", "optional", or "" where the algorithm has no use for them.
        compressor: the algorithm, for messages.

    Raises:
        ConfigError: batches are required and missing, or are no batches; ``forward`` cannot be
            called.
        EngineError: what a file names cannot be imported, or fails.
    """
    if isinstance(batches, str):
        batches = named(batches, "batches")()
    if isinstance(forward, str):
        forward = named(forward, "forward")
    problems = []
    if batches is None and wanted == "required":
        problems.append(Problem("batches is missing", "/batches", None, _NEEDS))
    elif batches is not None and (
        not isinstance(batches, Iterable) or isinstance(batches, Mapping)
    ):
        what = f"batches is a {type(batches).__name__}"
        problems.append(Problem(what, "/batches", None, _NEEDS))
    if forward is not None and not callable(forward):
        what = f"forward is a {type(forward).__name__}"
        problems.append(Problem(what, "/forward", None, "needs: a function forward(model, batch)"))
    if problems:
        raise ConfigError(problems, describe(compressor))
    if batches is not None and iter(batches) is batches:
        batches = list(batches)  # they are run more than once
    return batches, forward


def folder_of_states(folder: Any, compressor: object) -> str | None:
    """Return the folder for hidden states, as given to a compressor.

    Raises:
        ConfigError: it is no folder.
    """
    if folder is None:
        return None
    needs = "needs: a folder that is there"
    if not isinstance(folder, str | os.PathLike):
        what = f"states_folder is a {type(folder).__name__}"
    elif not os.path.isdir(folder):
        what = f"there is no folder {os.fspath(folder)}"
    else:
        return os.fspath(folder)
    raise ConfigError([Problem(what, "/states_folder", None, needs)], describe(compressor))


_NEEDS = (
    "needs: inputs to calibrate with, a list of batches or a loader; "
    'in a file "module:function" that returns one'
)
