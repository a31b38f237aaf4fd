"""Trials on other machines, by the system's OpenSSH: the resource "node"."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from engine.experiment import Experiment
from engine.experiment.process import Script, environment_of
from engine.job_files import environment
from engine.search.folder import JobFiles


class Nodes:
    """Starts scripts on the machines that an experiment names.

    A place is ``user@host`` or ``user@host:folder``; the folder is the experiment's own by default
    and holds the script and its data. The configuration travels with the command; the report and
    the models come back with ``scp``. Keys must work without a question (``BatchMode``). The script
    has a terminal there, so that it gets a hangup when the connection ends, however that happens.

    Args:
        experiment: the experiment.
        n_parallel: how many trials run at a time; machines are used in turn.
    """

    def __init__(self, experiment: Experiment, nodes: Sequence[str], n_parallel: int) -> None:
        self.places: Sequence[str] = [
            f"{nodes[index % len(nodes)]}#{index}" for index in range(n_parallel)
        ]
        self._experiment = experiment

    def start(self, place: str, job: JobFiles) -> Script:
        """Start the script on the machine."""
        node = place.rpartition("#")[0]
        return Script(
            ["/bin/sh", "-c", self._commands(node, job)],
            self._experiment.folder,
            environment_of("node", {}, {}),
            job.output,
            job.exit,
        )

    def _commands(self, node: str, job: JobFiles) -> str:
        """Return the shell commands: run there, fetch what was written, keep the exit code."""
        host, _, given = node.partition(":")
        folder = given or str(self._experiment.folder)
        there = f"{folder}/{job.config.parent.parent.name}/node/{job.config.stem}"
        keep = self._experiment.data.get("resource_args", {}).get("save_model", False)
        variables = environment(Path(there, "models"), Path(there, "report.json"), save_model=keep)
        variables |= {"PYTHONUNBUFFERED": "1", **self._experiment.environment}
        script, *arguments = self._experiment.command
        script = os.path.join(".", os.path.relpath(script, self._experiment.folder))
        start = shlex.join(
            [
                "env",
                *(f"{key}={value}" for key, value in variables.items()),
                *(script, *arguments, f"{there}/config.json"),
            ]
        )
        config = shlex.quote(job.config.read_text(encoding="utf-8"))
        target = shlex.quote(there)
        remote = (
            f"cd {shlex.quote(folder)} && mkdir -p {target} && "
            f"printf %s {config} > {target}/config.json && exec {start}"
        )
        options = "-o BatchMode=yes -o ServerAliveInterval=15"
        fetch = "scp -q -r -o BatchMode=yes"
        return (
            f"ssh -tt {options} {shlex.quote(host)} {shlex.quote(remote)}; code=$?\n"
            f"{fetch} {shlex.quote(f'{host}:{there}/report.json')} {shlex.quote(str(job.report))} "
            "2>/dev/null\n"
            f"{fetch} {shlex.quote(f'{host}:{there}/models')} {shlex.quote(str(job.models))} "
            "2>/dev/null\n"
            "exit $code"
        )
