"""Systems that the tests do not run on, imitated by taking away what they lack."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

LACKING = Path(__file__).parent / "lacking"
HEAD = f"#!{sys.executable}\nimport json, os, sys, time\n"
#: Notes its process, and that it has come to its end; the best place is 0.3 for every layer.
SCORE = """
config = json.load(open(sys.argv[-1]))
x = [entry["sparsity"] for entry in config["config_list"]]
os.makedirs("log", exist_ok=True)
open(f"log/{os.getpid()}.begun", "w").write(repr(x))
time.sleep(float(os.environ.get("SECONDS", 0)))
print("#Auptimizer:" + repr(1 - sum((each - 0.3) ** 2 for each in x)), flush=True)
open(f"log/{os.getpid()}.ended", "w").write(repr(x))
"""
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(params=[pytest.param("macos", marks=pytest.mark.slow), "windows"])
def system(request: pytest.FixtureRequest) -> str:
    """The system that is imitated."""
    return str(request.param)


@pytest.fixture
def start(system: str, tmp_path: Path) -> Iterator[Start]:
    """Start a command of the engine, or Python where the first word is ``-c``."""
    started: list[subprocess.Popen[str]] = []

    def begin(*words: str, **variables: str) -> subprocess.Popen[str]:
        rest = words if words[0] == "-c" else ("-m", "engine", *words)
        process = subprocess.Popen(
            [sys.executable, *rest],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(LACKING), "LACKING": system, **variables},
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def say(start: Start) -> Callable[..., str]:
    """Return what a command prints; it has to end well."""

    def run(*words: str, code: int = 0, **variables: str) -> str:
        process = start(*words, **variables)
        output, errors = process.communicate(timeout=180)
        assert process.returncode == code, output + errors
        assert "Traceback" not in errors
        return output + errors

    return run


@pytest.fixture
def experiment(tmp_path: Path) -> Callable[..., Path]:
    """Write a script and an experiment that runs it, a search where the sparsity is a range."""

    def make(sparsity: Any, code: str = SCORE, **changes: Any) -> Path:
        script = tmp_path / "train.py"
        script.write_text(HEAD + code, encoding="utf-8")
        script.chmod(0o755)
        data: dict[str, Any] = {
            "name": "test",
            "script": "train.py",
            "resource": "cpu",
            "compression": {
                "compressor": "level",
                "config_list": [{"op_names": ["a", "b"], "sparsity": sparsity}],
            },
        }
        file = tmp_path / "experiment.json"
        file.write_text(json.dumps({**data, **changes}), encoding="utf-8")
        return file

    return make
