"""One-time experiments: check the file, run its script once, keep what it printed and reported."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

from engine import config
from engine.errors import ConfigError, EngineError, Problem
from engine.experiment.protocol import result_in
from engine.files import write_whole

JOBS = "jobs"


class Experiment(NamedTuple):
    """A checked experiment.

    ``folder`` is where the script runs and where the folder ``jobs`` is; ``command`` starts the
    script, without the job's file.
    """

    name: str
    folder: Path
    command: tuple[str, ...]
    resource: str
    section: Mapping[str, Any]


class Outcome(NamedTuple):
    """What became of a job. ``result`` is None when the script reported none."""

    job: int
    status: str
    result: list[float] | None
    exit_code: int | None
    seconds: float
    output: Path

    @property
    def succeeded(self) -> bool:
        """Whether the script ended well and reported a result."""
        return self.status == "finished"


def read_experiment(path: str | os.PathLike[str]) -> Experiment:
    """Return the experiment in a file, ready to run.

    ``workingdir`` is relative to the file's folder, and that folder by default; the script's first
    word is a path relative to ``workingdir``.

    Raises:
        ConfigError: the file is wrong, or its script or folder cannot be used.
        PluginError: the algorithm is broken.
    """
    document = config.read(path)
    if isinstance(document.data, dict) and "compression" not in document.data:
        raise ConfigError(
            [document.problem("this is no experiment: it has no compression", "", _NEEDS)],
            document.source,
        )
    settings = config.check(document)
    data = document.data
    missing = [key for key in ("name", "script", "resource") if key not in data]
    if missing:
        raise ConfigError(
            [document.problem(f'there is no "{key}"', "", _NEEDS) for key in missing],
            document.source,
        )
    problems: list[Problem] = []
    folder = (Path(path).parent / data.get("workingdir", ".")).resolve()
    if not folder.is_dir():
        problems.append(document.problem(f"there is no folder {folder}", "/workingdir"))
    try:
        words = shlex.split(data["script"])
    except ValueError as error:
        words = []
        problems.append(document.problem(f"the script cannot be read: {error}", "/script"))
    if words and not problems:
        script = folder / words[0]
        if not script.is_file():
            near = _near_scripts(folder)
            problems.append(
                document.problem(
                    f"there is no script {words[0]} in {folder}",
                    "/script",
                    f"scripts there: {', '.join(near)}" if near else None,
                )
            )
        elif not os.access(script, os.X_OK):
            problems.append(
                document.problem(
                    f"the script {words[0]} may not be run", "/script", f"chmod +x {script}"
                )
            )
        words[0] = str(script)
    elif not words and not problems:
        problems.append(document.problem("the script is empty", "/script"))
    if problems:
        raise ConfigError(problems, document.source)
    return Experiment(
        data["name"], folder, tuple(words), data["resource"], data[settings.pointer.strip("/")]
    )


def run_once(
    experiment: Experiment,
    *,
    echo: Callable[[str], object] = lambda line: None,
    ask: Callable[[str], str] = input,
) -> Outcome:
    """Run the script once and return what became of it.

    The job's configuration is ``jobs/<n>.json``, what the script prints ``jobs/<n>.out``, the
    outcome ``jobs/<n>.result.json``; n is the first number that is free. With the resource
    "passive" nothing is run: a person does it and types the result.

    Args:
        experiment: what to run.
        echo: gets each line that the script prints.
        ask: asks a person for a line, for the resource "passive".

    Raises:
        EngineError: the script cannot be started, or a file cannot be written.
    """
    jobs = experiment.folder / JOBS
    jobs.mkdir(exist_ok=True)
    number = _reserve(jobs)
    job_file = jobs / f"{number}.json"
    text = json.dumps(experiment.section, indent=2)
    write_whole(job_file, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    started = time.monotonic()
    output = jobs / f"{number}.out"
    command = [*experiment.command, str(job_file)]
    if experiment.resource == "passive":
        echo(f"run this, then type the result: {shlex.join(command)}\n")
        lines, exit_code = [f"#Auptimizer:{ask('result: ')}\n"], 0
        output.write_text("".join(lines), encoding="utf-8")
    else:
        with output.open("w", encoding="utf-8") as log:
            exit_code = _run(command, experiment, log, echo)
        lines = output.read_text(encoding="utf-8").splitlines()
    result = result_in(lines)
    if exit_code != 0:
        status = f"failed: exit code {exit_code}"
    elif result is None:
        status = "failed: the script ended without engine.print_result(score)"
    else:
        status = "finished"
    outcome = Outcome(number, status, result, exit_code, time.monotonic() - started, output)
    record = {key: str(v) if isinstance(v, Path) else v for key, v in outcome._asdict().items()}
    write_whole(
        jobs / f"{number}.result.json",
        lambda temporary: temporary.write_text(json.dumps(record, indent=2), encoding="utf-8"),
    )
    return outcome


_NEEDS = (
    "it needs: name, script, resource (cpu, gpu or passive), compression; a compression section "
    "by itself is what engine.create_compressor takes"
)


def _reserve(jobs: Path) -> int:
    """Return the first free job number, its file created, so that two runners never share one."""
    number = 0
    while True:
        with suppress(FileExistsError):
            os.close(os.open(jobs / f"{number}.json", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            return number
        number += 1


def _run(
    command: list[str], experiment: Experiment, log: IO[str], echo: Callable[[str], object]
) -> int:
    # "#!/usr/bin/env python" shall find the Python that runs the engine, and print at once.
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    if experiment.resource == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    try:
        process = subprocess.Popen(
            command,
            cwd=experiment.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        reason = error.strerror or str(error)
        hint = ""
        if isinstance(error, OSError) and error.errno in (8, 2):
            hint = "; its first line must name its program, such as #!/usr/bin/env python"
        raise EngineError(f"{command[0]} cannot be started: {reason}{hint}") from error
    assert process.stdout is not None
    try:
        for line in process.stdout:
            log.write(line)
            log.flush()
            echo(line)
        return process.wait()
    except BaseException:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        raise


def _near_scripts(folder: Path) -> list[str]:
    found = [p.name for p in sorted(folder.iterdir()) if p.is_file() and os.access(p, os.X_OK)]
    return found[:5]
