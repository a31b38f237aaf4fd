"""How and where trials run. Another way, such as a cluster's scheduler, is another executor."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Protocol

from engine.errors import EngineError
from engine.experiment import Experiment, system
from engine.experiment.output import limit_of
from engine.experiment.process import Ended, Script, environment_of
from engine.experiment.search.folder import JobFiles
from engine.experiment.search.nodes import Nodes
from engine.experiment.search.person import Person
from engine.files.job import environment


class Running(Protocol):
    """A trial that runs; :class:`engine.experiment.process.Script` is one."""

    def poll(self) -> Ended | None:
        """Return how it ended, None while it runs."""

    def wait(self, seconds: float = ...) -> None:
        """Wait until it ends, at most so long."""

    def lines(self, *, rest: bool = False) -> list[str]:
        """Return the lines that it printed since the last call."""

    def terminate(self) -> None:
        """Ask it to end, and do not wait."""

    def stop(self) -> None:
        """End it and all that it started; wait until that is done."""

    def close(self) -> None:
        """Let go of its files."""


class Executor(Protocol):
    """Starts trials at places: a share of the processor, a GPU, another machine.

    ``places`` are their names; as many trials run at a time.
    """

    places: Sequence[str]

    def start(self, place: str, job: JobFiles) -> Running:
        """Start the script on a trial's configuration. EngineError when that is impossible."""


def executor_of(
    experiment: Experiment,
    n_parallel: int,
    *,
    ask: Callable[[str], str] = input,
    say: Callable[[str], object] = print,
) -> Executor:
    """Return the executor for an experiment's resource.

    Raises:
        EngineError: there are fewer GPUs than trials at a time.
    """
    arguments = experiment.data.get("resource_args", {})
    if experiment.resource == "passive":
        return Person(experiment, ask, say)
    if experiment.resource == "node":
        return Nodes(experiment, arguments["nodes"], n_parallel)
    if experiment.resource == "gpu":
        return Local(experiment, _gpus(arguments.get("devices"), n_parallel), "gpu")
    return Local(experiment, [str(index) for index in range(n_parallel)], "cpu")


class Local:
    """Scripts on this machine.

    With several trials at a time each gets its share of the processor's cores as the number of
    threads: PyTorch would start one thread per core in each of them, and they would be slower
    together than one after the other. On GPUs each trial sees one.
    """

    def __init__(self, experiment: Experiment, places: Sequence[str], kind: str) -> None:
        self.places = places
        self._experiment = experiment
        self._kind = kind

    def start(self, place: str, job: JobFiles) -> Running:
        """Start the script."""
        variables = {} if len(self.places) == 1 else threads(len(self.places))
        if self._kind == "gpu":
            variables["CUDA_VISIBLE_DEVICES"] = place.partition("#")[0]
        keep = self._experiment.saves_models
        variables |= environment(job.models, job.report, save_model=keep)
        return Script(
            [*self._experiment.command, str(job.config)],
            self._experiment.folder,
            environment_of(self._kind, self._experiment.environment, variables),
            job.output,
            job.exit,
            limit_of(self._experiment.data.get("resource_args", {})),
        )


def threads(n_parallel: int) -> dict[str, str]:
    """Return the thread limits for each of ``n_parallel`` scripts on this machine's cores."""
    share = str(max(1, system.cores() // n_parallel))
    return {"OMP_NUM_THREADS": share, "MKL_NUM_THREADS": share}


def _gpus(devices: Sequence[int] | None, n_parallel: int) -> list[str]:
    if devices is not None:
        found = [str(device) for device in devices]
    else:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        found = system.gpus() if visible is None else visible.split(",")
        found = [name.strip() for name in found if name.strip()]
    if not found and system.macos():
        raise EngineError(
            "macOS has no GPUs of NVIDIA's, which the resource gpu is about\n"
            "  with the resource cpu a script may use mps all the same"
        )
    if len(found) < n_parallel:
        raise EngineError(
            f"n_parallel is {n_parallel}, and there {'is' if len(found) == 1 else 'are'} "
            f"{len(found) or 'no'} GPU{'s' if len(found) != 1 else ''}\n"
            "  lower n_parallel, or share a GPU with resource_args: {devices: [0, 0]}"
        )
    return [f"{name}#{index}" for index, name in enumerate(found[:n_parallel])]
