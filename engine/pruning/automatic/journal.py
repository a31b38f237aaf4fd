"""What a search has tried, in memory and in a folder, so that a killed search goes on.

A search is the same from one seed to the next if its trials come out the same. So it is resumed by
starting it again: trials that are in the file are not run but looked up, and weights that were
trained meanwhile are loaded at the last step that was saved.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from engine.errors import CheckpointError, ExportError
from engine.files import PathLike, load_tensors, save_tensors
from engine.files.progress import ProgressFile, Words

_TRIALS, _STATE = "search.json", "search_state.pt"
_WORDS = Words(
    kind="the progress of a search",
    other="another search; nothing was changed",
    damaged="remove it, or give another experiment_data_dir",
    foreign="remove the folder, give another experiment_data_dir, or go on with what it was made "
    "for",
)


class Trial(NamedTuple):
    """One plan that was tried.

    Attributes:
        number: from 0, the model as it is.
        what: what the search tried it for.
        plan: sparsity by layer, those that lose nothing left out.
        metric: what the evaluator returned.
        removed: the fraction of the budget's whole that the plan removes.
    """

    number: int
    what: str
    plan: dict[str, float]
    metric: float
    removed: float


class Journal:
    """Trials in order, and the last state that was saved.

    Args:
        folder: where they are kept, made if it is not there; None keeps trials in memory only.
        settings: plain values that trials depend on: a file of other ones is refused.

    Attributes:
        trials: those of this run, in order.
        saved_steps: how many steps of the search the saved state is after; 0 without one.

    Raises:
        CheckpointError: the folder's files are damaged or belong to another search.
        ExportError: the folder cannot be made.
    """

    def __init__(self, folder: PathLike | None, settings: Mapping[str, Any]) -> None:
        self._folder = None if folder is None else Path(folder)
        self._file: ProgressFile | None = None
        self.trials: list[Trial] = []
        self.saved_steps = 0
        self._known: list[Trial] = []
        self._measured: dict[str, float] = {}
        if self._folder is None:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ExportError(f"cannot make {self._folder}: {error.strerror or error}") from error
        self._file = ProgressFile(self._path(_TRIALS), settings, _WORDS)
        self._read(self._file)

    @property
    def resumed(self) -> int:
        """How many trials an earlier run has left."""
        return len(self._known)

    def known(self, what: str, plan: Mapping[str, float]) -> Trial | None:
        """Return the next trial if an earlier run has made it.

        Raises:
            CheckpointError: the earlier run tried something else here.
        """
        number = len(self.trials)
        if number >= len(self._known):
            return None
        trial = self._known[number]
        if trial.what != what or trial.plan != dict(plan):
            raise CheckpointError(
                f'the search in {self._folder} tried "{trial.what}" as number {number}, this one '
                f'tries "{what}" or another plan for it\n  the algorithm or its budget has '
                "changed; remove the folder to begin anew"
            )
        self.trials.append(trial)
        return trial

    def add(self, what: str, plan: Mapping[str, float], metric: float, removed: float) -> Trial:
        """Keep a trial that was made now."""
        trial = Trial(len(self.trials), what, dict(plan), metric, removed)
        self.trials.append(trial)
        self._write()
        return trial

    def measured(self, key: str) -> float | None:
        """Return what was measured for ``key``, a time that would not come out the same again."""
        return self._measured.get(key)

    def measure(self, key: str, value: float) -> float:
        """Keep a measurement."""
        self._measured[key] = value
        self._write()
        return value

    def save(self, steps: int, state: dict[str, Any]) -> None:
        """Keep the model and all that belongs to it, after ``steps`` steps."""
        if self._folder is not None:
            save_tensors(self._path(_STATE), {"steps": steps, **state})
            self.saved_steps = steps
            self._write()

    def load(self) -> dict[str, Any]:
        """Return the saved state.

        Raises:
            CheckpointError: its file is missing or damaged.
        """
        state: dict[str, Any] = load_tensors(self._path(_STATE))
        return state

    def _path(self, name: str) -> Path:
        assert self._folder is not None
        return self._folder / name

    def _write(self) -> None:
        if self._file is None:
            return
        # What an earlier run has found and this one has not come to yet stays in the file.
        trials = [*self.trials, *self._known[len(self.trials) :]]
        listed = [trial._asdict() for trial in trials]
        self._file.write({"measured": self._measured, "trials": listed})

    def _read(self, file: ProgressFile) -> None:
        document = file.read()
        if document is None:
            return
        try:
            self._known = [Trial(**trial) for trial in document["trials"]]
            self._measured = {str(k): float(v) for k, v in document["measured"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise file.damaged(error) from error
        if self._path(_STATE).exists():
            self.saved_steps = int(self.load()["steps"])
