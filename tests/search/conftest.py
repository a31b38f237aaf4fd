"""Small automatic experiments: scripts without torch, in a folder of their own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_search import HEAD, SCORE, SPACE, Make, Silent

from engine.experiment import read_experiment
from engine.experiment.search.runner import Runner


@pytest.fixture
def experiment(tmp_path: Path) -> Make:
    """Write a script and an experiment that runs it; return the experiment's file."""

    def make(code: str = SCORE, **changes: Any) -> Path:
        script = tmp_path / "train.py"
        script.write_text(HEAD + code, encoding="utf-8")
        script.chmod(0o755)
        data: dict[str, Any] = {
            "name": "test",
            "script": "train.py",
            "resource": "cpu",
            "n_samples": 3,
            "compression": {
                "compressor": "level",
                "config_list": [{"op_names": ["a", "b"], "sparsity": SPACE}],
            },
        }
        data.update(changes)
        file = tmp_path / "experiment.json"
        file.write_text(json.dumps({k: v for k, v in data.items() if v is not None}, indent=1))
        return file

    return make


@pytest.fixture
def search(experiment: Make) -> Callable[..., tuple[Runner, Silent]]:
    """Run an experiment to its end; return the runner and what it told."""

    def run(code: str = SCORE, **changes: Any) -> tuple[Runner, Silent]:
        view = Silent()
        runner = Runner(read_experiment(experiment(code, **changes)), view)
        runner.run()
        return runner, view

    return run
