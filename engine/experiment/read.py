"""Reads an experiment's file and checks all of it, script included, before anything starts."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from engine import config
from engine.config import Document, Search, Settings
from engine.config.check import without_flags
from engine.config.plain import escape
from engine.errors import ConfigError, EngineError, Problem, nearest
from engine.experiment import system
from engine.user_code.shadow import shadow

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_NEEDS = (
    "it needs: name, script, resource (cpu, gpu, passive or node), compression; a compression "
    "section by itself is what engine.create_compressor takes"
)


class Experiment(NamedTuple):
    """A checked experiment.

    Attributes:
        name: its name.
        folder: where the script runs and where the files of its runs are.
        command: starts the script, without the job's file.
        resource: cpu, gpu, passive or node.
        section: the compression section, search spaces included.
        settings: what the section means; of an automatic experiment with one value of each space.
        search: what is searched; None for a one-time experiment.
        data: the whole file.
        source: the file's name, for messages.
        notes: what a person should know and what is no mistake.
    """

    name: str
    folder: Path
    command: tuple[str, ...]
    resource: str
    section: Mapping[str, Any]
    settings: Settings
    search: Search | None
    data: Mapping[str, Any]
    source: str
    notes: tuple[str, ...] = ()

    @property
    def environment(self) -> Mapping[str, str]:
        """The environment variables that the file gives to scripts."""
        given: Mapping[str, str] = self.data.get("runtime_args", {}).get("env", {})
        return given

    @property
    def saves_models(self) -> bool:
        """Whether the scripts of a search keep their models."""
        return bool(self.data.get("resource_args", {}).get("save_model", False))


def read_experiment(
    path: str | os.PathLike[str] | Document, *, automatic: bool | None = None, runs: bool = True
) -> Experiment:
    """Return the experiment in a file, ready to run.

    ``workingdir`` is relative to the file's folder, and that folder by default; the script's first
    word is a path relative to ``workingdir``.

    Args:
        path: the file, or what was read from it.
        automatic: True demands an automatic experiment; None takes the file for one when its
            compression holds a search space.
        runs: whether it is to be run; else its folder may be one that is only read, and its script
            may be gone.

    Raises:
        ConfigError: the file is wrong, or its script or folder cannot be used.
        PluginError: the algorithm is broken.
    """
    document = config.read(path)
    data = document.data
    if not isinstance(data, dict) or (
        "compression" not in data and nearest("compression", data) is None
    ):
        raise ConfigError(
            [document.problem("this is no experiment: it has no compression", "", _NEEDS)],
            document.source,
        )
    problems: list[Problem] = []
    search, settings = None, None
    try:
        if "compression" in data and (automatic or config.is_automatic(document)):
            search = config.check_search(document)
        settings = search.settings if search is not None else config.check(document)
    except ConfigError as error:
        problems += error.problems
    notes: list[str] = []
    command, folder = _runs(document, problems, notes, runs=runs)
    if problems or settings is None:
        raise ConfigError(sorted(problems, key=lambda each: each.line or 0), document.source)
    section = data["compression"] if search is not None else without_flags(data["compression"])
    return Experiment(
        data["name"],
        folder,
        tuple(command),
        data["resource"],
        section,
        settings,
        search,
        data,
        document.source,
        tuple(notes),
    )


def _runs(
    document: Document, problems: list[Problem], notes: list[str], *, runs: bool
) -> tuple[list[str], Path]:
    """Return what is run and where; what is wrong with that is added to ``problems``.

    What has been found before in one of these keys is not told again.
    """
    data = document.data
    told = {each.pointer for each in problems}
    problems += [
        document.problem(f'there is no "{key}"', "", _NEEDS)
        for key in ("name", "script", "resource")
        if key not in data and not any(each.suggestion == key for each in problems)
    ]
    folder, command = Path(document.source).parent, []
    if "/workingdir" not in told:
        folder = (folder / data.get("workingdir", ".")).resolve()
        if not folder.is_dir():
            problems.append(document.problem(f"there is no folder {folder}", "/workingdir"))
        elif not runs:
            return [], folder
        elif not os.access(folder, os.W_OK | os.X_OK):
            message = f"the folder {folder} cannot be written"
            problems.append(document.problem(message, "/workingdir"))
        elif "script" in data and "/script" not in told:
            command = _command(document, folder, problems, notes)
    arguments = data.get("resource_args", {})
    named = not isinstance(arguments, dict) or arguments.get("nodes")
    if data.get("resource") == "node" and not named:
        needs = 'resource_args: {nodes: ["user@host"]}'
        problems.append(document.problem("node needs the names of machines", "/resource", needs))
    if data.get("resource") == "node" and system.windows():
        message = "Windows runs nothing on other machines: node needs a POSIX shell and ssh here"
        allowed = "cpu, gpu and passive run on this machine, as does node under WSL"
        problems.append(document.problem(message, "/resource", allowed))
    if not any(pointer.startswith("/runtime_args") for pointer in told):
        _check_environment(document, problems)
    return command, folder


def _check_environment(document: Document, problems: list[Problem]) -> None:
    """Add a problem for each variable that no process, or no shell on a node, can be given."""
    for key, value in document.data.get("runtime_args", {}).get("env", {}).items():
        pointer = f"/runtime_args/env/{escape(key)}"
        if not _VARIABLE.fullmatch(key):
            needs = "letters, digits and underscores, such as DATA_FOLDER"
            problems.append(document.problem(f'no variable is called "{key}"', pointer, needs))
        elif "\0" in value:
            problems.append(document.problem("the value holds a NUL character", pointer))


def _command(
    document: Document, folder: Path, problems: list[Problem], notes: list[str]
) -> list[str]:
    data = document.data
    try:
        words = system.split(data["script"])
    except ValueError as error:
        problems.append(document.problem(f"the script cannot be read: {error}", "/script"))
        return []
    if not words:
        problems.append(document.problem("the script is empty", "/script"))
        return []
    script = folder / words[0]
    if not script.is_file():
        files = [each for each in sorted(folder.iterdir()) if each.is_file()]
        there = [each.name for each in files if os.access(each, os.X_OK)]
        problems.append(
            document.problem(
                f"there is no script {words[0]} in {folder}",
                "/script",
                f"scripts there: {', '.join(there[:5])}" if there else None,
                nearest(words[0], there) or nearest(words[0], [each.name for each in files]),
            )
        )
    elif not os.access(script, os.R_OK):
        problems.append(document.problem(f"the script {words[0]} cannot be read", "/script"))
    elif not os.access(script, os.X_OK):
        fix = f"chmod +x {shlex.quote(str(script))}"
        problems.append(document.problem(f"the script {words[0]} may not be run", "/script", fix))
    else:
        return [*_start(document, script, problems, notes), *words[1:]]
    return []


def _start(
    document: Document, script: Path, problems: list[Problem], notes: list[str]
) -> list[str]:
    """Return the words that start a script; what keeps it from working is added to ``problems``."""
    hidden = shadow(script)
    if hidden is not None and hidden.harmless:
        notes.append(f"{hidden.message}; {script.name} does not import it")
    elif hidden is not None:
        problems.append(document.problem(hidden.message, "/script", hidden.fix))
    try:
        return [*system.program_of(script), str(script)]
    except EngineError as error:
        problems.append(document.problem(str(error), "/script"))
        return []
