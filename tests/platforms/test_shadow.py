"""A file called engine.py beside a script: said before anything starts."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.cli import main

THEIRS = "import math\ndef train_one_epoch(model): return 1.0\nclass Meter: pass\n"
REPORT = 'print("#Auptimizer:0.5")\n'
USES_OURS = "import engine\nengine.print_result(0.5)\n"


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """Write a script, files beside it, and an experiment; return the experiment's path."""

    def make(script: str, name: str = "train.py", **files: str) -> str:
        path = tmp_path / name
        path.write_text(f"#!{sys.executable}\n{script}")
        path.chmod(0o755)
        for other, text in files.items():
            (tmp_path / f"{other}.py").write_text(text)
        section = {
            "compressor": "level",
            "config_list": [{"op_types": ["Linear"], "sparsity": 0.5}],
        }
        data = {"name": "test", "script": name, "resource": "cpu", "compression": section}
        file = tmp_path / "experiment.json"
        file.write_text(json.dumps(data))
        return str(file)

    return make


@pytest.mark.parametrize("command", ["run", "validate"])
def test_a_script_that_would_not_find_this_package_is_refused(
    write: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    file = write(USES_OURS, engine=THEIRS)
    assert main([command, file]) == 2
    assert capsys.readouterr().err == (
        f"{file}: 1 problem\n\n/script   (line 1)\n"
        f"  {tmp_path}/engine.py hides this package from the scripts beside it\n"
        "  rename engine.py, or put the script into another folder\n"
    )
    assert not (tmp_path / "jobs").exists()


@pytest.mark.parametrize(
    "script",
    [
        "from engine import train_one_epoch, print_result\n",
        "from engine.algorithms import LevelPruner\n",
        "if True:\n    import engine as compression\n",
        "from engine import Meter\nimport torch, engine\n",
        "import engine\nthis is no Python\n",
    ],
)
def test_whatever_asks_for_more_than_the_file_has_is_refused(
    write: Callable[..., str], script: str
) -> None:
    assert main(["validate", write(script, engine=THEIRS)]) == 2


@pytest.mark.parametrize("script", [REPORT, "from engine import train_one_epoch, Meter\n" + REPORT])
def test_a_script_that_wants_the_file_runs_and_it_is_told(
    write: Callable[..., str], capsys: pytest.CaptureFixture[str], script: str
) -> None:
    assert main(["run", write(script, engine=THEIRS), "--quiet"]) == 0
    said = capsys.readouterr()
    assert "engine.py hides this package from the scripts beside it" in said.err
    assert "result 0.5" in said.out


def test_a_package_hides_as_a_file_does(
    write: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "engine").mkdir()
    (tmp_path / "engine" / "__init__.py").touch()
    assert main(["validate", write(USES_OURS)]) == 2
    assert f"{tmp_path}/engine hides this package" in capsys.readouterr().err


def test_what_this_package_needs_is_hidden_as_well(
    write: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["validate", write(USES_OURS, torch="")]) == 2
    assert "torch.py hides torch, which engine needs, from" in capsys.readouterr().err
    assert main(["validate", write(REPORT, torch="")]) == 0


def test_a_copy_of_this_package_and_a_folder_without_code_hide_nothing(
    write: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "engine").mkdir()
    assert main(["validate", write(USES_OURS)]) == 0
    for name in ("__init__", "hookspecs"):
        (tmp_path / "engine" / f"{name}.py").touch()
    assert main(["validate", write(USES_OURS)]) == 0


def test_a_program_in_another_language_is_left_alone(
    write: Callable[..., str], tmp_path: Path
) -> None:
    file = write("", name="train.sh", engine=THEIRS)
    (tmp_path / "train.sh").write_text("#!/bin/sh\n# import engine\n")
    assert main(["validate", file]) == 0


def test_python_may_be_told_not_to_look_beside_the_script(
    write: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(USES_OURS, engine=THEIRS)
    (tmp_path / "train.py").write_text(f"#!{sys.executable} -P\n{USES_OURS}")
    assert main(["validate", file]) == 0
    assert main(["validate", write(USES_OURS)]) == 2
    monkeypatch.setenv("PYTHONSAFEPATH", "1")
    assert main(["validate", file]) == 0


def test_the_file_of_a_link_is_where_python_looks(
    write: Callable[..., str], tmp_path: Path
) -> None:
    file = write(USES_OURS)
    there = tmp_path / "there"
    there.mkdir()
    (tmp_path / "train.py").rename(there / "train.py")
    (tmp_path / "train.py").symlink_to(there / "train.py")
    assert main(["validate", file]) == 0
    (there / "engine.py").write_text(THEIRS)
    assert main(["validate", file]) == 2


def test_a_model_that_wants_the_file_is_refused(
    write: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    net = "from engine import Meter\nfrom torch import nn\nbuild = lambda: nn.Linear(4, 2)\n"
    (tmp_path / "net_beside.py").write_text(net)
    file = write(REPORT, engine=THEIRS)
    assert main(["validate", file, "--model", "net_beside:build"]) == 2
    assert "engine.py and this package are both called that" in capsys.readouterr().err
    (tmp_path / "net_beside.py").write_text(net.partition("\n")[2])
    assert main(["validate", file, "--model", "net_beside:build"]) == 0
