"""One-time experiments: run the script once, keep what it printed and reported."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from engine.errors import EngineError
from engine.experiment.orphans import end_orphans
from engine.experiment.outcome import Outcome, judge
from engine.experiment.output import limit_of
from engine.experiment.process import Ended, Script, environment_of
from engine.experiment.protocol import MARK, result_in, result_of
from engine.experiment.read import Experiment
from engine.experiment.system import joined
from engine.files import write_whole
from engine.files.job import environment, settings

JOBS = "jobs"
MODELS = "models"


def run_once(
    experiment: Experiment,
    *,
    echo: Callable[[str], object] = lambda line: None,
    ask: Callable[[str], str] = input,
) -> Outcome:
    """Run the script once and return what became of it.

    The job's configuration is ``jobs/<n>.json``, what the script prints ``jobs/<n>.out``, the
    outcome ``jobs/<n>.result.json``; what it saves is in the folder ``models/<n>``. n is the first
    number that is free. With the resource "passive" nothing is run: a person does it and types the
    result.

    Args:
        experiment: what to run.
        echo: gets each line that the script prints.
        ask: asks a person for a line, for the resource "passive".

    Raises:
        EngineError: the script cannot be started, or a file cannot be written.
    """
    jobs = experiment.folder / JOBS
    try:
        jobs.mkdir(exist_ok=True)
        end_orphans(jobs)
        number = _reserve(jobs)
    except OSError as error:
        raise EngineError(f"{jobs} cannot be written: {error.strerror}") from error
    job_file = jobs / f"{number}.json"
    own = settings(experiment.folder / MODELS / str(number), save_model=True)
    _write(job_file, json.dumps({**experiment.section, **own}, indent=2))
    started = time.monotonic()
    output = jobs / f"{number}.out"
    command = [*experiment.command, str(job_file)]
    result: list[float] | None = None

    def hear(line: str) -> None:
        nonlocal result  # of a long output the file that is kept may lack it
        result = result_of(line) or result
        echo(line)

    if experiment.resource == "passive":
        echo(f"run this, then type the result: {joined(command)}\n")
        _write(output, f"{MARK}{ask('result: ')}\n")
        ended = Ended(0)
    else:
        ended = _run(command, experiment, jobs / str(number), hear)
    if result is None:
        with output.open(encoding="utf-8", errors="replace") as lines:
            result = result_in(lines)
    status = judge(ended, result)
    if status.startswith("failed: the result is not finite"):
        result = None
    outcome = Outcome(number, status, result, ended.code, time.monotonic() - started, output)
    record = {key: str(v) if isinstance(v, Path) else v for key, v in outcome._asdict().items()}
    _write(jobs / f"{number}.result.json", json.dumps(record, indent=2, allow_nan=False))
    return outcome


def _run(
    command: list[str], experiment: Experiment, job: Path, echo: Callable[[str], object]
) -> Ended:
    models = experiment.folder / MODELS / job.name
    variables = environment(models, job.with_suffix(".report.json"), save_model=True)
    script = Script(
        command,
        experiment.folder,
        environment_of(experiment.resource, experiment.environment, variables),
        job.with_suffix(".out"),
        exit_file := job.with_suffix(".exit"),
        limit_of(arguments := experiment.data.get("resource_args", {})),
    )
    timeout = arguments.get("timeout")
    started = time.monotonic()
    try:
        while (ended := script.poll()) is None:
            if timeout is not None and time.monotonic() - started > timeout:
                script.stop()
                _tell_rest(script, echo)
                return Ended(None, f"it did not end within {timeout:g} s")
            if not _tell(script, echo):
                script.wait()
        if ended.error is not None:
            raise EngineError(f"{command[0]}: {ended.error}")
        _tell_rest(script, echo)
        return ended
    except BaseException:
        script.stop()
        raise
    finally:
        script.close()
        exit_file.unlink(missing_ok=True)  # its number is in the record


def _tell(script: Script, echo: Callable[[str], object]) -> bool:
    """Pass some lines on that the script has printed; return whether there were any."""
    lines = script.lines()
    for line in lines:
        echo(line)
    return bool(lines)


def _tell_rest(script: Script, echo: Callable[[str], object]) -> None:
    """Pass on what a script that has ended printed last."""
    while _tell(script, echo):
        pass
    for line in script.lines(rest=True):
        echo(line)


def _reserve(jobs: Path) -> int:
    """Return the first free job number, its file created, so that two runners never share one."""
    number = 0
    while True:
        with suppress(FileExistsError):
            os.close(os.open(jobs / f"{number}.json", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            return number
        number += 1


def _write(path: Path, text: str) -> None:
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
