"""The folder of an automatic experiment: everything that a run needs to go on, and its owner.

<name>.exp/experiment.json   the experiment as it was begun, and its plan
           study.db          Optuna's study: SQLite
           jobs/<n>.json     a trial's configuration; .out: what it printed; .exit: how it
                             ended; .report.json: what it said of its model
           models/<n>/       what the best trials saved
           best.json         the best configuration, as a one-time experiment
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from engine.errors import EngineError
from engine.experiment import Experiment
from engine.experiment.search.plan import Plan
from engine.files import write_whole
from engine.files.digest import digest_of

SUFFIX = ".exp"
_KEPT = {"experiment", "plan", "shared"}


class JobFiles(NamedTuple):
    """Where a trial's files are."""

    config: Path
    output: Path
    exit: Path
    report: Path
    models: Path


class Folder:
    """The folder of one experiment; nothing is read or written before a method is called."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.study = root / "study.db"
        self.frozen = root / "experiment.json"
        self.best = root / "best.json"

    @classmethod
    def of(cls, experiment: Experiment) -> Folder:
        """Return the folder that belongs to an experiment, beside its script."""
        name = re.sub(r"[^\w.+-]+", "-", experiment.name).strip("-.") or "experiment"
        return cls(experiment.folder / (name[:100] + SUFFIX))

    def job(self, number: int) -> JobFiles:
        """Return the files of a trial."""
        job = self.root / "jobs" / str(number)
        config, output, ended, report = (
            job.with_suffix(ending) for ending in (".json", ".out", ".exit", ".report.json")
        )
        return JobFiles(config, output, ended, report, self.root / "models" / str(number))

    @contextlib.contextmanager
    def owned(self) -> Iterator[None]:
        """Make the folder and be its only runner until the end of the context.

        The lock goes with the process, however it ends.

        Raises:
            EngineError: another runner has it, or it cannot be written.
        """
        from filelock import FileLock, Timeout

        owner = self.root / "owner.txt"  # Windows lets nobody read a file that is locked
        lock = FileLock(self.root / "owner.lock", timeout=0)
        try:
            (self.root / "jobs").mkdir(parents=True, exist_ok=True)
            lock.acquire()
            owner.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        except Timeout:
            name = owner.read_text(encoding="utf-8") if owner.exists() else "another process"
            raise EngineError(
                f"{self.root} is in use by {name}\n"
                "  an experiment has one runner; to run more trials at a time, give it a "
                "larger n_parallel"
            ) from None
        except OSError as error:
            lock.release()
            raise EngineError(f"cannot write {self.root}: {error.strerror}") from error
        try:
            yield
        finally:
            lock.release()

    def begin(self, experiment: Experiment, plan: Plan, *, shared: bool = False) -> None:
        """Keep the experiment as it is begun, or check that it is the one that was.

        Everything but the name, the compression section, the model, the targets and the labels may
        change between runs: the number of samples, the script, the resource.

        Args:
            experiment: the experiment.
            plan: what is searched.
            shared: whether its study is in a storage that runners share. Two studies would both
                count their trials from 0, and write over each other's files.

        Raises:
            EngineError: the folder belongs to another experiment, or its study is elsewhere.
        """
        data = dict(experiment.data)
        held = self.read() if self.frozen.exists() else None
        if held is None or not any((self.root / "jobs").iterdir()):
            kept = held or {"experiment": data, "plan": plan.section}
            kept = {**kept, "shared": shared}
            text = json.dumps({**kept, "sha256": digest_of(kept)}, indent=2)
            write_whole(self.frozen, lambda temporary: temporary.write_text(text, encoding="utf-8"))
        if held is None:
            return
        self.require(shared=shared)
        before = held["experiment"]
        for key, default in (("name", None), ("compression", None), ("target", "max")):
            if before.get(key, default) != data.get(key, default):
                raise self._other(key)
        if _labels(before) != _labels(data):
            raise self._other("multi_res_labels")

    def read(self) -> dict[str, Any]:
        """Return what :meth:`begin` kept.

        Raises:
            EngineError: there is none, or it is damaged.
        """
        try:
            held = json.loads(self.frozen.read_text(encoding="utf-8"))
            if not isinstance(held["experiment"], dict) or not isinstance(held["plan"], dict):
                raise KeyError("experiment")
            if not isinstance(held["experiment"]["name"], str):
                raise KeyError("name")
            stated = held.pop("sha256", None)
            if not set(held) <= _KEPT or stated not in (None, digest_of(held)):
                raise ValueError("it is not what was written (SHA-256 differs)")
        except FileNotFoundError:
            raise EngineError(f"{self.root} is no experiment: it has no experiment.json") from None
        except OSError as error:
            raise EngineError(f"{self.frozen} cannot be read: {error.strerror}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise EngineError(f"{self.frozen} is damaged: {error}") from error
        return dict(held)

    def require(self, *, shared: bool) -> None:
        """Check that the study is where it is looked for.

        Raises:
            EngineError: it is in a shared storage and ``shared`` is False, or the other way round.
        """
        held = self.read().get("shared", False)
        if held and not shared:
            raise EngineError(
                f"the trials of {self.root} are in a storage that runners share\n"
                "  give its address with --storage"
            )
        if shared and not held:
            raise EngineError(
                f"the trials of {self.root} are in its own study.db, not in a shared storage\n"
                "  go on without --storage, or give the experiment a name of its own"
            )

    def require_trials(self, known: int) -> None:
        """Check that the study knows all trials whose files are here.

        Args:
            known: how many trials the study has; they are numbered from 0.

        Raises:
            EngineError: there are files of later ones, which new trials would write over.
        """
        jobs = self.root / "jobs"
        stems = (file.name.partition(".")[0] for file in jobs.iterdir())
        last = max((int(stem) for stem in stems if stem.isdecimal()), default=-1)
        if last >= known:
            what = f"has {known} trials only" if known else "is gone or empty"
            raise EngineError(
                f"{jobs} has files of {last + 1} trials, and the study that they belong to {what}: "
                "new trials would write over them\n"
                f"  put {self.study.name} back, or move {self.root.name} away to begin anew"
            )

    def plan(self) -> Plan:
        """Return the plan that :meth:`begin` kept."""
        return Plan.of(self.read()["plan"])

    def _other(self, key: str) -> EngineError:
        return EngineError(
            f"{self.root} was begun with another {key}\n"
            "  trials of both cannot be compared: give this experiment a name of its own, or "
            "remove the folder"
        )


def _labels(data: Mapping[str, Any]) -> list[str]:
    return list(data.get("resource_args", {}).get("multi_res_labels", ()))
