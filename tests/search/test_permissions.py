"""Files and folders that may not be read or written: a sentence, and nothing half done.

To root nothing is forbidden. With its capabilities given away it is an owner like any other.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from small_search import SCORE, Make

from engine.cli import main

_GIVE_AWAY = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
_ROOT = os.geteuid() == 0

pytestmark = pytest.mark.skipif(
    _ROOT and shutil.which("setpriv") is None,
    reason="root may write everywhere, and there is no setpriv to take that away",
)


def engine(*words: str) -> subprocess.CompletedProcess[str]:
    """Run the command line as somebody whom permissions bind."""
    start = [*(_GIVE_AWAY if _ROOT else []), sys.executable, "-m", "engine"]
    return subprocess.run([*start, *words], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("below", "mode", "command", "said"),
    [
        (".", 0o555, "run", "the folder {root} cannot be written"),
        ("train.py", 0o300, "run", "the script train.py cannot be read"),
        (
            "train.py",
            0o600,
            "run",
            "the script train.py may not be run\n  chmod +x {root}/train.py",
        ),
        ("experiment.json", 0o000, "run", "the file cannot be read: Permission denied"),
        ("test.exp/jobs", 0o555, "run", "cannot write {root}/test.exp/jobs/1.json"),
        ("test.exp/study.db", 0o444, "run", "{root}/test.exp/study.db cannot be used: attempt to"),
        ("test.exp/study.db", 0o000, "report", "{root}/test.exp/study.db cannot be read: unable"),
        ("test.exp/experiment.json", 0o000, "report", "experiment.json cannot be read: Permission"),
    ],
)
def test_what_is_forbidden_is_said_in_a_sentence(
    experiment: Make, tmp_path: Path, below: str, mode: int, command: str, said: str
) -> None:
    assert main(["run", str(experiment(SCORE, n_samples=1))]) == 0
    file = experiment(SCORE, n_samples=2)
    forbidden = tmp_path / below
    before = forbidden.stat().st_mode
    forbidden.chmod(mode)
    try:
        done = engine(command, str(file))
    finally:
        forbidden.chmod(before)
    assert done.returncode == 2
    assert said.format(root=tmp_path) in done.stderr
    assert "Traceback" not in done.stderr
    assert main(["run", str(file)]) == 0


@pytest.mark.parametrize("below", [".", "test.exp", "train.py"])
def test_a_folder_that_may_only_be_read_is_reported(
    experiment: Make, tmp_path: Path, below: str
) -> None:
    file = experiment(SCORE, n_samples=2)
    assert main(["run", str(file)]) == 0
    wanted = engine("report", str(file), "--json", "--no-files").stdout
    assert '"best": ' in wanted
    folder = tmp_path / below
    folder.chmod(0o555 if folder.is_dir() else 0o000)
    try:
        done = engine("report", str(file), "--json", "--no-files")
    finally:
        folder.chmod(0o755)
    assert (done.returncode, done.stdout) == (0, wanted)
