"""Where a script that a runner started leaves its files: told to it in environment variables.

Without a runner there are none: files go where the script says.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.errors import ExportError

_MODELS = "ENGINE_MODEL_FOLDER"
_REPORT = "ENGINE_REPORT_FILE"
_SAVE = "ENGINE_SAVE_MODEL"


def environment(models: Path, report: Path, *, save_model: bool) -> dict[str, str]:
    """Return the variables for a script whose models belong into ``models``."""
    return {_MODELS: str(models), _REPORT: str(report), _SAVE: "1" if save_model else ""}


def settings(models: Path, *, save_model: bool) -> dict[str, Any]:
    """Return the keys of a job's configuration that say whether and where a script saves its model.

    Scripts of Auptimizer ask for them: ``if config["save_model"]: ... config["folder_name"]``.
    """
    return {"save_model": save_model, "folder_name": str(models)}


def mark(report: Path | str) -> str:
    """Return the setting by which the processes of a job are known, whoever started them."""
    return f"{_REPORT}={report}"


def mark_in(variables: Mapping[str, str]) -> str:
    """Return the setting by which processes with this environment are known; empty: by none."""
    return mark(variables[_REPORT]) if _REPORT in variables else ""


def model_folder(inside: str | os.PathLike[str] | None = None) -> Path | None:
    """Return the folder for this job's models, made if need be.

    Args:
        inside: a folder in it; without a runner, in the current folder.

    Returns:
        None when no runner started this script and ``inside`` is None.

    Raises:
        ExportError: the folder cannot be made.
    """
    given = os.environ.get(_MODELS)
    if not given and inside is None:
        return None
    folder = Path(given or ".") / (inside if inside is not None else "")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExportError(f"cannot make the folder {folder}: {error.strerror}") from error
    return folder


def report_file() -> Path | None:
    """Return the file for this job's report on its model; None without a runner."""
    given = os.environ.get(_REPORT)
    return Path(given) if given else None


def saves_model() -> bool:
    """Return whether the runner wants this job's model to be saved."""
    return bool(os.environ.get(_SAVE))
