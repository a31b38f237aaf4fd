"""Trials on other machines, by the system's OpenSSH: the resource "node"."""

from __future__ import annotations

import json
import os
import shlex
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.experiment import Experiment
from engine.experiment.output import limit_of
from engine.experiment.process import Ended, Script, environment_of
from engine.experiment.search.folder import JobFiles
from engine.files.job import environment

#: What ssh ends with when there is no connection or it breaks; a script's own 255 is made 254.
_LOST = 255
#: Errors only: what it says of a connection that ends well would be the last line of each output.
_SSH = "ssh -o BatchMode=yes -o LogLevel=ERROR -o ConnectTimeout=20 -o ServerAliveInterval=15"


class Nodes:
    """Starts scripts on the machines that an experiment names.

    A place is ``user@host`` or ``user@host:folder``; the folder is the experiment's own by default
    and holds the script and its data. The configuration travels with the command. The report and
    the models of a script that ended well come back through ``tar``, and are removed there. Keys
    must work without a question (``BatchMode``). The script has a terminal there, so that it gets a
    hangup when the connection ends, however that happens.

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
        host, _, given = node.partition(":")
        at_home = given == "~" or given.startswith("~/")
        folder = given[2:] or "." if at_home else given or str(self._experiment.folder)
        beside = sum(each.rpartition("#")[0] == node for each in self.places)
        # Below the folder, which may be relative to the user's home there.
        below = f"{job.config.parent.parent.name}/node/{job.config.stem}"
        return _Remote(
            host,
            ["/bin/sh", "-c", _here(host, folder, below, self._there(below, job, beside), job)],
            self._experiment.folder,
            # By its mark the next runner finds an ssh whose guard was killed, too.
            environment_of("node", {}, environment(job.models, job.report, save_model=False)),
            job.output,
            job.exit,
            limit_of(self._experiment.data.get("resource_args", {})),
        )

    def _there(self, below: str, job: JobFiles, beside: int) -> str:
        """Return the shell commands for the machine, which runs ``beside`` trials at a time."""
        keep = self._experiment.saves_models
        own = environment(Path("$job/models"), Path("$job/report.json"), save_model=keep)
        own["PYTHONUNBUFFERED"] = "1"
        given = self._experiment.environment.items()
        settings = [f'{key}="{value}"' for key, value in own.items()]
        settings += [f"{key}={shlex.quote(value)}" for key, value in given]
        script, *arguments = self._experiment.command
        script = os.path.join(".", os.path.relpath(script, self._experiment.folder))
        program = shlex.quote(script)
        # A command's length has a limit: no spaces between.
        config = json.loads(job.config.read_text(encoding="utf-8"))
        if "folder_name" in config:
            config["folder_name"] = f"{below}/models"
        text = shlex.quote(json.dumps(config, separators=(",", ":")))
        return (
            f"[ -x {program} ] || {{ echo {program} is not a program there; exit {_LOST}; }}\n"
            f'job="$PWD"/{shlex.quote(below)}\n'
            f'rm -rf "$job" && mkdir -p "$job" && printf %s {text} > "$job"/config.json || '
            f"exit {_LOST}\n"
            f"{_threads(beside)}export {' '.join(settings)}\n"
            f'{shlex.join([script, *arguments])} "$job"/config.json; code=$?\n'
            f"[ $code -ne {_LOST} ] || code={_LOST - 1}\n"
            "exit $code"
        )


class _Remote(Script):
    """A script on another machine; ``output`` holds what ssh says, too."""

    def __init__(self, host: str, *args: Any) -> None:
        super().__init__(*args)
        self._host = host
        self._output: Path = args[3]

    def poll(self) -> Ended | None:
        """Return how it ended; nothing is known of it when the machine could not be used."""
        ended = super().poll()
        if ended is None or ended.code != -signal.SIGKILL:
            return ended
        text = self._output.read_text(encoding="utf-8", errors="replace")
        said = [line.strip() for line in text.splitlines() if line.strip()]
        reason = said[-1][:200] if said else "no connection"
        return Ended(None, f"{self._host} cannot be used: {reason}", lost=True)


def _threads(beside: int) -> str:
    """Return commands that give each of some trials its share of a machine's cores."""
    if beside == 1:
        return ""
    return (
        f"n=$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)\n"
        f"n=$((n / {beside})); [ $n -gt 0 ] || n=1\n"
        "export OMP_NUM_THREADS=$n MKL_NUM_THREADS=$n\n"
    )


def _here(host: str, folder: str, below: str, there: str, job: JobFiles) -> str:
    """Return the shell commands for this machine: run there, fetch what was written, remove it."""

    def on(command: str, options: str = "") -> str:
        # The login shell there may be any; the commands are for sh.
        whole = f"cd {shlex.quote(folder)} || exit {_LOST}\n{command}"
        command = shlex.quote("exec sh -c " + shlex.quote(whole))
        return f"{_SSH} {options} {shlex.quote(host)} {command}"

    left = f"the report and the models were not fetched: they are in {host}:{folder}/{below}"
    fetched, report = shlex.quote(f"{job.config}.node"), shlex.quote(str(job.report))
    models, all_models = shlex.quote(str(job.models)), shlex.quote(str(job.models.parent))
    return (
        f"{on(there, '-tt')}; code=$?\n"
        # Whoever reads the exit file takes the trial for cut off, a later runner as well.
        f"[ $code -ne {_LOST} ] || kill -KILL $$\n"
        "if [ $code -eq 0 ]; then\n"
        f"  mkdir -p {fetched} {all_models}\n"
        f"  {on(f'tar -C {shlex.quote(below)} -cf - .')} | tar -C {fetched} -xf - || {{\n"
        f"    echo {shlex.quote(left)}\n"
        "    exit 0\n"
        "  }\n"
        f"  [ ! -f {fetched}/report.json ] || mv {fetched}/report.json {report}\n"
        f"  [ ! -d {fetched}/models ] || mv {fetched}/models {models}\n"
        f"  rm -rf {fetched}\n"
        "fi\n"
        f"{on(f'rm -rf {shlex.quote(below)}')}\n"
        "exit $code"
    )
