"""One-time runs and searches without what macOS or Windows lack; killed and gone on with."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

Say = Callable[..., str]
Make = Callable[..., Path]
SPACE = {"range": [0.1, 0.9], "type": "float"}
#: Starts a process in a session of its own, by one that ends at once, and tells both.
LEAVES = """
import subprocess
inner = "import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', 'import time; "
inner += "time.sleep(600)'], start_new_session=True, stdout=-3, stderr=-3); print(p.pid)"
os.makedirs("log", exist_ok=True)
said = subprocess.run([sys.executable, "-c", inner], capture_output=True, text=True).stdout
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"],
                         start_new_session=True)
open("log/left", "w").write(f"{os.getpid()} {child.pid} {said}")
time.sleep(600)
"""


def alive(process: int) -> bool:
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def logged(folder: Path, kind: str) -> list[int]:
    return [int(path.stem) for path in (folder / "log").glob(f"*.{kind}")]


def running(folder: Path) -> list[int]:
    return [process for process in logged(folder, "begun") if alive(process)]


def left(folder: Path) -> list[int]:
    """Return what LEAVES has written, once it is there."""
    file = folder / "log" / "left"
    wait_for(lambda: file.exists() and len(file.read_text().split()) == 3)
    return [int(word) for word in file.read_text().split()]


def test_a_script_runs_once(say: Say, experiment: Make, tmp_path: Path) -> None:
    assert "result 0.96" in say("run", str(experiment(0.5)))
    assert sorted(path.name for path in (tmp_path / "jobs").iterdir()) == [
        "0.json", "0.out", "0.result.json",
    ]  # fmt: skip


def test_at_its_timeout_a_script_ends_with_what_has_left_its_session(
    say: Say, experiment: Make, tmp_path: Path
) -> None:
    file = experiment(0.5, LEAVES, resource_args={"timeout": 3})
    assert "it did not end within 3 s" in say("run", str(file), code=1)
    assert not [process for process in left(tmp_path) if alive(process)]


def test_trials_run_beside_each_other_and_are_reported(
    say: Say, experiment: Make, tmp_path: Path
) -> None:
    file = experiment(SPACE, n_samples=3, n_parallel=2)
    assert "as a one-time experiment" in say("run", str(file))
    assert len(logged(tmp_path, "ended")) == 3
    assert "finished" in say("report", "test.exp")


def test_a_killed_search_leaves_no_script_and_is_gone_on_with(
    say: Say, start: Callable[..., subprocess.Popen[str]], experiment: Make, tmp_path: Path
) -> None:
    file = experiment(SPACE, n_samples=4, n_parallel=2)
    runner = start("run", str(file), SECONDS="0.5")
    wait_for(lambda: len(logged(tmp_path, "ended")) > 1 and bool(running(tmp_path)))
    runner.kill()
    wait_for(lambda: not running(tmp_path))
    assert "going on" in say("run", str(file))
    ends = [path.read_text() for path in (tmp_path / "log").glob("*.ended")]
    assert len(ends) == len(set(ends)) == 4
    assert not list((tmp_path / "test.exp" / "jobs").glob("*.process"))


@pytest.mark.parametrize("sparsity", [0.5, SPACE], ids=["once", "search"])
def test_killed_with_its_guard_a_script_is_ended_by_the_next_run(
    start: Callable[..., subprocess.Popen[str]], experiment: Make, tmp_path: Path, sparsity: object
) -> None:
    file = experiment(sparsity, LEAVES, n_samples=1)
    runner = start("run", str(file))
    processes = left(tmp_path)
    jobs = tmp_path / ("jobs" if sparsity == 0.5 else "test.exp/jobs")
    guard = json.loads((jobs / "0.process").read_text())["guard"]
    runner.kill()
    psutil.Process(guard).kill()
    time.sleep(0.1)
    assert all(map(alive, processes))
    (tmp_path / "train.py").write_text((tmp_path / "train.py").read_text().replace("600", "0"))
    again = start("run", str(file))
    wait_for(lambda: not any(map(alive, processes)))
    again.communicate(timeout=60)
    assert not list(jobs.glob("*.process"))


def test_a_run_leaves_the_scripts_of_another_one_alone(
    say: Say, start: Callable[..., subprocess.Popen[str]], experiment: Make, tmp_path: Path
) -> None:
    file = experiment(0.5)
    other = start("run", str(file), SECONDS="600")
    wait_for(lambda: (tmp_path / "jobs" / "0.process").exists() and bool(running(tmp_path)))
    process = running(tmp_path)[0]
    say("run", str(file))
    assert alive(process)
    other.kill()
    wait_for(lambda: not alive(process))
