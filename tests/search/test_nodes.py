"""Trials by ssh: OpenSSH is replaced by a program that runs the command on this machine."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from small_search import SCORE, Make, Silent, alive

from engine import EngineError
from engine.experiment import read_experiment
from engine.experiment.search import places, recovery
from engine.experiment.search.ledger import Ledger
from engine.experiment.search.runner import Runner

#: The host is the word before the last; "down" answers nobody, "lost" breaks off once, at first.
SSH = """#!/bin/bash
for word; do host=$last; last=$word; done
echo "$@" >> "$LOG"
case $host in
down) echo "ssh: connect to host down: Connection refused" >&2; exit 255 ;;
lost) if mkdir "$LOG.lost" 2>/dev/null; then echo half; exit 255; fi ;;
esac
cd "$HOME" || exit 1
exec sh -c "$last"
"""
#: What a script leaves behind beside its score.
WRITE = """
os.makedirs(os.environ["ENGINE_MODEL_FOLDER"])
open(os.environ["ENGINE_MODEL_FOLDER"] + "/model", "w").write(repr(x))
open(os.environ["ENGINE_REPORT_FILE"], "w").write(repr(x))
"""
Run = Callable[..., Runner]


@pytest.fixture
def run(experiment: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return the runner of an experiment on nodes."""
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "ssh").write_text(SSH)
    (programs / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("LOG", str(tmp_path / "ssh.log"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(places, "RESTS", (0.02, 0.02))

    def begin(nodes: list[str], code: str = WRITE + SCORE, **changes: object) -> Runner:
        arguments = {"nodes": nodes}
        file = experiment(code, resource="node", resource_args=arguments, **changes)
        return Runner(read_experiment(file), Silent())

    return begin


def told(runner: Runner) -> list[str]:
    """Return what became of each trial, as the runner told its view."""
    assert isinstance(runner._view, Silent)
    return [status for _, status, _ in runner._view.ends]


def counted(runner: Runner) -> list[str]:
    return [trial.state.name for trial in runner.ledger.trials()]


def test_reports_and_the_best_models_come_back_and_nothing_stays_there(
    run: Run, tmp_path: Path
) -> None:
    runner = run(["user@host"], n_samples=3)
    (best,) = runner.run()
    assert counted(runner) == ["COMPLETE"] * 3
    values = {trial.number: repr(list(trial.params.values())) for trial in runner.ledger.trials()}
    assert {n: runner.folder.job(n).report.read_text() for n in values} == values
    kept = list((runner.folder.root / "models").glob("*/*"))
    assert [path.read_text() for path in kept] == [values[best.number]]
    assert list((runner.folder.root / "node").iterdir()) == []
    log = (tmp_path / "ssh.log").read_text()
    assert "BatchMode=yes" in log
    assert "user@host" in log


@pytest.mark.parametrize("folder", ["~", "~/"])
def test_the_home_there_may_be_the_folder(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    (tmp_path / "home").mkdir()
    runner = run([f"host:{folder}"], n_samples=1)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "train.py").rename(tmp_path / "home" / "train.py")
    runner.run()
    assert counted(runner) == ["COMPLETE"]


@pytest.mark.parametrize("folder", ["far away", "~/far away"])
def test_a_folder_is_looked_for_in_the_users_home(run: Run, tmp_path: Path, folder: str) -> None:
    runner = run([f"host:{folder}"], n_samples=1)
    (tmp_path / "far away").mkdir()
    (tmp_path / "train.py").rename(tmp_path / "far away" / "train.py")
    runner.run()
    assert counted(runner) == ["COMPLETE"]
    assert json.loads(runner.folder.job(0).report.read_text())
    assert {path.name for path in (tmp_path / "far away").iterdir()} == {"train.py", "test.exp"}


def test_a_machine_that_cannot_be_reached_takes_no_trials_from_the_others(run: Run) -> None:
    runner = run(["host", "down"], n_samples=9, n_parallel=2, proposer="tpe")
    runner.run()
    assert counted(runner) == ["COMPLETE"] * 9
    lost = [status for status in told(runner) if status != "finished"]
    refused = "cut off: down cannot be used: ssh: connect to host down: Connection refused"
    assert set(lost) == {refused}
    assert len(lost) <= len(places.RESTS) + 1, "it is left then, if the others take so long"


def test_a_place_is_left_after_a_failure_more_than_it_may_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [0.0]
    monkeypatch.setattr(places, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    both = places.Places(["a", "b"])
    both.failed("a", "no route")
    both.worked("a")  # in a row, it is said
    for rest in places.RESTS:
        both.failed("a", "no route")
        clock[0] += 0.99 * rest
        assert both.free([]) == ["b"]
        clock[0] += 0.02 * rest
        assert both.free([]) == ["a", "b"]
    both.failed("a", "no route")
    clock[0] += 1e9
    assert both.free([]) == ["b"]
    for _ in places.RESTS:
        both.failed("b", "no route")
    with pytest.raises(EngineError, match="no machine is left to run trials: no route"):
        both.failed("b", "no route")


def test_a_machine_lost_while_the_runner_ends_is_no_failure_of_its_trial(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Ledger, "give_back", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(["down"], n_samples=1).run()
    runner = run(["host"], n_samples=1)
    runner.run()
    assert counted(runner) == ["COMPLETE"]


def test_an_ssh_whose_guard_was_killed_is_ended_by_the_next_runner(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "print(os.getppid(), flush=True)\ntime.sleep(60)\n"
    runner = run(["host"], code)
    job = runner.folder.job(0)
    job.config.parent.mkdir(parents=True)
    job.config.write_text('{"config_list": []}')
    running = runner._executor.start(runner._executor.places[0], job)
    deadline = time.monotonic() + 30
    while not (lines := running.lines()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    there = int(lines[0])
    running._guard.kill()  # type: ignore[attr-defined]
    monkeypatch.setattr(recovery, "GRACE", -1.0)
    recovery.end_leftovers([job])
    assert not alive(there)
    running.close()


def test_a_trial_whose_connection_breaks_is_tried_again(run: Run) -> None:
    runner = run(["lost"], n_samples=2)
    runner.run()
    assert told(runner)[0] == "cut off: lost cannot be used: half"
    trials = runner.ledger.study.get_trials(deepcopy=False)
    assert [trial.state.name for trial in trials] == ["FAIL", "COMPLETE", "COMPLETE"]
    assert trials[1].params == trials[0].params


def test_without_a_machine_the_run_ends_and_can_go_on(run: Run) -> None:
    with pytest.raises(EngineError, match=r"no machine is left .*: down cannot be used: ssh: con"):
        run(["down"], n_samples=2).run()
    runner = run(["host"], n_samples=2)
    runner.run()
    assert counted(runner) == ["COMPLETE"] * 2


def test_a_machine_without_the_script_is_named(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(EngineError, match=r"host cannot be used: ./train.py is not a program th"):
        run(["host:empty"]).run()


def test_a_scripts_own_exit_code_255_is_its_failure(run: Run) -> None:
    runner = run(["host"], "sys.exit(255)\n", n_samples=2)
    assert runner.run() == []
    assert counted(runner) == ["FAIL"] * 2
    assert told(runner)[0] == "failed: exit code 254"


def test_what_an_earlier_experiment_left_there_is_not_taken_for_a_result(
    run: Run, tmp_path: Path
) -> None:
    old = tmp_path / "test.exp" / "node" / "0"
    old.mkdir(parents=True)
    (old / "report.json").write_text("old")
    runner = run(["host"], SCORE, n_samples=1)
    runner.run()
    assert not runner.folder.job(0).report.exists()


def test_trials_beside_each_other_on_a_machine_share_its_cores(run: Run) -> None:
    code = "report(int(os.environ['OMP_NUM_THREADS']))\n"
    runner = run(["host"], code, n_samples=2, n_parallel=2)
    runner.run()
    cores = len(os.sched_getaffinity(0))
    assert [trial.value for trial in runner.ledger.trials()] == [max(1, cores // 2)] * 2
