"""What is different on Windows, where it can be told from its values."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from engine import ConfigError, EngineError
from engine.experiment import read_experiment, system
from engine.experiment.search import executors


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the engine take this for Windows."""
    monkeypatch.setattr(system, "windows", lambda: True)


@pytest.mark.parametrize("command", ["a.py --name 'x y' # b", 'a "b\\"c" d\\ e', "a\\b.py"])
def test_elsewhere_a_command_is_parted_as_by_the_shell(command: str) -> None:
    import shlex

    assert system.split(command) == shlex.split(command)


@pytest.mark.usefixtures("windows")
def test_a_backslash_parts_folders() -> None:
    assert system.split("a\\train.py --data 'C:\\my data'") == [
        "a\\train.py", "--data", "C:\\my data",
    ]  # fmt: skip
    assert system.joined(["a b.py", "c"]) == '"a b.py" c'


@pytest.mark.usefixtures("windows")
@pytest.mark.parametrize(
    ("name", "first", "wanted"),
    [
        ("a.py", "import os", [sys.executable]),
        ("a.py", "#!/usr/bin/env python", [sys.executable]),
        ("a.py", "#!/usr/bin/env -S python3 -u", [sys.executable, "-u"]),
        ("a", "#!/nowhere/bin/python3.11 -X dev\r", [sys.executable, "-X", "dev"]),
        ("a.py", f"#!{sys.executable} -u", [sys.executable, "-u"]),
        ("a.bat", "echo", []),
        ("A.EXE", "MZ", []),
    ],
)
def test_the_first_line_says_what_runs_a_script(
    tmp_path: Path, name: str, first: str, wanted: list[str]
) -> None:
    script = tmp_path / name
    script.write_bytes(f"{first}\nprint(1)\n".encode())
    assert system.program_of(script) == wanted


@pytest.mark.usefixtures("windows")
@pytest.mark.parametrize(("name", "first"), [("a.sh", "#!/nowhere/bin/sh"), ("a", "print(1)")])
def test_what_windows_cannot_run_is_refused_by_name(
    experiment: Callable[..., Path], tmp_path: Path, name: str, first: str
) -> None:
    (tmp_path / name).write_text(f"{first}\n")
    (tmp_path / name).chmod(0o755)
    with pytest.raises(ConfigError) as caught:
        read_experiment(experiment(0.5, script=name))
    assert [each.pointer for each in caught.value.problems] == ["/script"]
    assert f"Windows cannot run {name}" in caught.value.problems[0].message


@pytest.mark.usefixtures("windows")
def test_other_machines_are_refused_by_name(experiment: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match="Windows runs nothing on other machines"):
        read_experiment(experiment(0.5, resource="node", resource_args={"nodes": ["a@b"]}))


def test_without_psutil_windows_refuses_and_others_go_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert Path(system.psutil_folder(), "psutil").is_dir()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert system.psutil_folder() == ""
    monkeypatch.setattr(system, "windows", lambda: True)
    with pytest.raises(EngineError, match="Windows ends no script"):
        system.psutil_folder()


def test_cores_are_counted_where_none_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    assert system.cores() == len(os.sched_getaffinity(0))
    monkeypatch.delattr(psutil.Process, "cpu_affinity")
    assert system.cores() == psutil.cpu_count()


def test_gpus_are_counted_by_what_comes_with_their_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(system, "_CARDS", tmp_path / "none")
    assert system.gpus() == []
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'GPU 0: A (UUID: x)'\necho 'GPU 1: B'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert system.gpus() == ["0", "1"]
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n")
    assert system.gpus() == []


def test_on_a_mac_the_missing_gpus_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "gpus", list)
    monkeypatch.setattr(system, "macos", lambda: True)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(EngineError, match="macOS has no GPUs of NVIDIA's"):
        executors._gpus(None, 1)


@pytest.mark.parametrize("sparsity", [0.5, {"range": [0.1, 0.9], "type": "float"}])
def test_what_only_a_run_needs_is_not_imported_to_validate(
    experiment: Callable[..., Path], sparsity: object
) -> None:
    code = "import sys; from engine.cli import main; main(sys.argv[1:]); "
    code += "print({'psutil', 'filelock', 'torch', 'optuna'} & sys.modules.keys())"
    words = [sys.executable, "-c", code, "validate", str(experiment(sparsity))]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"
