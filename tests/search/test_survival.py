"""Processes are really killed here, and every trial must still be run to its end exactly once."""

from __future__ import annotations

import collections
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import optuna
import pytest
from small_search import SCORE, Make, Silent, alive

from engine.cli import main
from engine.experiment import read_experiment
from engine.experiment.search.runner import Runner

#: Each trial notes its process and its configuration, and that it has come to its end.
SLOW = (
    "os.makedirs('log', exist_ok=True)\n"
    "open(f'log/{os.getpid()}.begun', 'w').write(repr(x))\n"
    "time.sleep(0.2 + 0.15 * (number % 2))\n"
    + SCORE
    + "open(f'log/{os.getpid()}.ended', 'w').write(repr(x))\n"
    + "os._exit(0)\n"  # at once: killed while Python winds up, it would have ended for its log only
)

Start = Callable[[Path], subprocess.Popen[str]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start ``engine run`` in a process of its own."""
    started: list[subprocess.Popen[str]] = []

    def begin(file: Path) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "engine", "run", str(file)]
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            assert stream is not None
            stream.close()


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def logged(folder: Path, kind: str) -> list[Path]:
    return list((folder / "log").glob(f"*.{kind}"))


def ended(folder: Path) -> list[int]:
    """Return the processes that have come to their end and have ended."""
    return [int(path.stem) for path in logged(folder, "ended") if not alive(int(path.stem))]


def running(folder: Path) -> list[int]:
    return [int(path.stem) for path in logged(folder, "begun") if alive(int(path.stem))]


def check_complete(folder: Path, samples: int) -> None:
    """Every sample has one result, and no configuration ran to its end twice."""
    database = f"sqlite:///{folder / 'test.exp' / 'study.db'}"
    study = optuna.load_study(study_name=None, storage=database)
    complete = [t for t in study.trials if t.state.name == "COMPLETE"]
    assert len(complete) == samples
    points = [tuple(trial.params.values()) for trial in complete]
    assert len(set(points)) == samples
    assert {t.state.name for t in study.trials} <= {"COMPLETE", "FAIL"}
    ended = collections.Counter(path.read_text() for path in logged(folder, "ended"))
    assert max(ended.values()) == 1
    assert sorted(ended) == sorted(repr(list(point)) for point in points)


@pytest.mark.parametrize("moment", [1, 3])
def test_a_killed_runner_takes_its_scripts_along_and_the_next_one_goes_on(
    experiment: Make, start: Start, moment: int
) -> None:
    file = experiment(SLOW, n_samples=6, n_parallel=2)
    runner = start(file)
    wait_for(lambda: len(ended(file.parent)) >= moment and bool(running(file.parent)))
    runner.kill()
    runner.wait()
    wait_for(lambda: not running(file.parent))
    assert main(["run", str(file)]) == 0
    check_complete(file.parent, 6)


def test_runner_and_scripts_killed_together(experiment: Make, start: Start) -> None:
    file = experiment(SLOW, n_samples=4, n_parallel=2)
    runner = start(file)
    wait_for(lambda: len(running(file.parent)) == 2)
    runner.kill()
    for process in running(file.parent):
        os.kill(process, signal.SIGKILL)
    runner.wait()
    assert main(["run", str(file)]) == 0
    check_complete(file.parent, 4)


def test_a_killed_trial_has_failed_and_the_rest_goes_on(experiment: Make, start: Start) -> None:
    file = experiment(SLOW, n_samples=3)
    runner = start(file)
    wait_for(lambda: bool(running(file.parent)))
    os.kill(running(file.parent)[0], signal.SIGKILL)
    output, _ = runner.communicate(timeout=30)
    assert runner.returncode == 0
    assert "trial 0: failed: killed by SIGKILL" in output
    assert len(logged(file.parent, "ended")) == 2


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_runner_leaves_nothing_and_goes_on(
    experiment: Make, start: Start, sent: int, code: int
) -> None:
    file = experiment(SLOW, n_samples=4, n_parallel=2)
    runner = start(file)
    wait_for(lambda: bool(ended(file.parent)) and bool(running(file.parent)))
    runner.send_signal(sent)
    _, errors = runner.communicate(timeout=15)
    assert runner.returncode == code
    assert "engine run goes on from here" in errors
    assert "Traceback" not in errors
    assert not running(file.parent)
    assert main(["run", str(file)]) == 0
    check_complete(file.parent, 4)


#: Told to end, it waits for its neighbour to be told, too, and notes if it was.
TIDIES_UP = (
    "import glob, signal\n"
    "os.makedirs('log', exist_ok=True)\n"
    "def tidy(*_):\n"
    "    open(f'log/{os.getpid()}.told', 'w').close()\n"
    "    deadline = time.monotonic() + 4\n"
    "    while len(glob.glob('log/*.told')) < 2 and time.monotonic() < deadline: time.sleep(0.01)\n"
    "    if len(glob.glob('log/*.told')) == 2: open(f'log/{os.getpid()}.both', 'w').close()\n"
    "    os._exit(0)\n"
    "signal.signal(signal.SIGTERM, tidy)\n"
    "open(f'log/{os.getpid()}.begun', 'w').close()\n"
    "time.sleep(60)\n"
)


def test_all_scripts_are_told_to_end_before_any_is_waited_for(
    experiment: Make, start: Start
) -> None:
    file = experiment(TIDIES_UP, n_samples=2, n_parallel=2)
    runner = start(file)
    wait_for(lambda: len(running(file.parent)) == 2)
    runner.send_signal(signal.SIGINT)
    runner.communicate(timeout=30)
    assert len(logged(file.parent, "both")) == 2


def test_a_trial_that_somebody_ends_in_the_study_stops_nothing(experiment: Make) -> None:
    code = (
        "import optuna\n" + SCORE.replace("report(", "score = (") + "if number == 0:\n"
        "    address = 'sqlite:///' + os.path.abspath('test.exp/study.db')\n"
        "    study = optuna.load_study(study_name=None, storage=address)\n"
        "    study.tell(0, state=optuna.trial.TrialState.FAIL)\n"
        "report(score)\n"
    )
    file = experiment(code, n_samples=2)
    script = file.parent / "train.py"
    script.write_text(script.read_text().replace(" -S\n", "\n", 1))
    runner = Runner(read_experiment(file), Silent())
    runner.run()
    assert [t.state.name for t in runner.ledger.study.trials] == ["FAIL", "COMPLETE"]


def test_a_script_that_ended_while_no_runner_was_there_is_not_run_again(experiment: Make) -> None:
    file = experiment(SLOW, n_samples=1)
    first = Runner(read_experiment(file), Silent())
    first.run()
    job = first.folder.job(1)
    # What a runner leaves that is killed between its script's end and telling the result.
    trial = first.ledger.study.ask(first.ledger._distributions)
    assert trial.number == 1
    job.output.write_text("some text\n#Auptimizer:0.625\n")
    job.exit.write_text(json.dumps({"code": 0}))
    file = experiment(SLOW, n_samples=2)
    second = Runner(read_experiment(file), Silent())
    second.run()
    values = [each.value for each in second.ledger.trials()]
    assert values[1] == 0.625
    assert len(logged(file.parent, "begun")) == 1


def test_killed_between_queueing_a_copy_and_ending_the_trial_makes_no_second_copy(
    experiment: Make,
) -> None:
    first = Runner(read_experiment(experiment(SLOW, n_samples=1)), Silent())
    first.run()
    trial = first.ledger.study.ask(first.ledger._distributions)
    first.ledger.study.enqueue_trial(trial.params, user_attrs={"continues": trial.number})
    second = Runner(read_experiment(experiment(SLOW, n_samples=2)), Silent())
    second.run()
    assert [t.state.name for t in second.ledger.study.trials] == ["COMPLETE", "FAIL", "COMPLETE"]


def test_a_trial_that_was_cut_off_while_it_was_asked_for_loses_no_point(experiment: Make) -> None:
    space = {"range": [0.2, 0.4], "type": "float", "n": 2}
    section = {"compressor": "level", "config_list": [{"op_names": ["a"], "sparsity": space}]}
    file = experiment(SCORE, n_samples=1, proposer="sequence", compression=section)
    first = Runner(read_experiment(file), Silent())
    first.run()
    first.ledger.study.enqueue_trial({"sparsity (a)": 0.4}, user_attrs={"point": 1})
    assert first.ledger.study.ask().params == {}
    file = experiment(SCORE, n_samples=None, proposer="sequence", compression=section)
    second = Runner(read_experiment(file), Silent())
    second.run()
    assert [t.params.get("sparsity (a)") for t in second.ledger.trials()] == [0.2, 0.4]


@pytest.mark.parametrize("limit", [60_000, 200_000])
def test_a_full_disk_ends_with_a_sentence(experiment: Make, limit: int) -> None:
    """A limit on the size of files stands for the disk: writing beyond it fails."""
    file = experiment(SCORE, n_samples=50)
    done = subprocess.run(
        [sys.executable, "-m", "engine", "run", str(file)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "test.exp" in done.stderr
    assert len(done.stderr) < 600


def test_a_script_that_cannot_be_started_says_why(
    experiment: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    file = experiment(n_samples=1)
    (file.parent / "train.py").write_text("print(1)\n")
    assert main(["run", str(file)]) == 1
    printed = capsys.readouterr().out
    assert "its first line must name its program" in printed
    assert "no trial has finished" in printed
