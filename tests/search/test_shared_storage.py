"""Several runners, each in a folder of its own, on one study."""

from __future__ import annotations

import datetime
import shutil
from pathlib import Path

import pytest
from optuna.study import Study
from small_search import SCORE, Make, Silent

from engine import EngineError
from engine.cli import main
from engine.experiment import read_experiment
from engine.experiment.search import recovery
from engine.experiment.search.report import collect
from engine.experiment.search.runner import Runner
from engine.experiment.search.study import is_shared


@pytest.fixture
def address(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'shared.db'}"


def elsewhere(file: Path) -> Path:
    """Return a copy of an experiment in another folder, as on another machine."""
    folder = file.parent / "elsewhere"
    folder.mkdir()
    for name in (file.name, "train.py"):
        shutil.copy(file.parent / name, folder)
    return folder / file.name


def test_two_runners_share_the_samples(experiment: Make, address: str) -> None:
    """The second one begins while the first has a trial that runs, and leaves it alone."""
    file = experiment(SCORE, n_samples=4)
    first = Runner(read_experiment(file), Silent(), storage=address)
    second = Runner(read_experiment(elsewhere(file)), Silent(), storage=address)
    begin, ends = first._start, []

    def start_both(place: str) -> None:
        begin(place)
        if not ends:
            ends.append(second.run())

    first._start = start_both  # type: ignore[method-assign]
    first.run()
    states = [trial.state.name for trial in first.ledger.study.trials]
    assert states == ["COMPLETE"] * 4
    own = {int(p.stem) for p in (first.folder.root / "jobs").glob("*.json")}
    other = {int(p.stem) for p in (second.folder.root / "jobs").glob("*.json")}
    assert (own, other) == ({0}, {1, 2, 3})
    report = collect(second.folder, address)
    assert [trial["number"] for trial in report["trials"]] == [0, 1, 2, 3]


def test_a_runner_takes_up_only_its_own_trials(experiment: Make, address: str) -> None:
    file = experiment(SCORE, n_samples=2)
    first = Runner(read_experiment(file), Silent(), storage=address)
    first.run()
    file = experiment(SCORE, n_samples=3)
    first.ledger.samples = 3
    assert first.ledger.ask() is not None  # and dies
    other = Runner(read_experiment(elsewhere(file)), Silent(), storage=address)
    other.run()
    assert other.returned == []
    again = Runner(read_experiment(file), Silent(), storage=address)
    again.run()
    assert again.returned == [2]
    states = [trial.state.name for trial in again.ledger.study.trials]
    assert states == ["COMPLETE", "COMPLETE", "FAIL", "COMPLETE"]


GRID = {
    "compressor": "level",
    "config_list": [
        {"op_names": ["a"], "sparsity": {"range": [0.1, 0.4], "type": "float", "n": 4}}
    ],
}


@pytest.mark.parametrize("proposer", ["sequence", "tpe"])
def test_what_two_runners_ask_for_at_once_is_tried_once(
    experiment: Make, address: str, proposer: str
) -> None:
    """Each has counted what is left and queued its next point before the other has asked."""
    changes = {"n_samples": 4, "proposer": proposer, "compression": GRID}
    file = experiment(SCORE, **changes)
    first = Runner(read_experiment(file), Silent(), storage=address)
    first.run()
    first.ledger.samples = 8
    waiting = {"sparsity (a)": 0.25}
    for _ in range(2):
        first.ledger.study.enqueue_trial(waiting, user_attrs={"point": 77})
    asked = first.ledger.ask()
    assert asked is not None
    assert asked.params == waiting
    again = first.ledger.ask()
    if proposer == "sequence":  # nothing of the grid is left
        assert again is None
    else:
        assert again is not None
        assert again.params != waiting
    withdrawn = first.ledger.study.get_trials(deepcopy=False)[asked.number + 1]
    assert withdrawn.user_attrs["status"] == "withdrawn"
    assert withdrawn.number not in [trial.number for trial in first.ledger.trials()]


def test_the_last_sample_is_taken_by_one_of_two_runners(
    experiment: Make, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = experiment(SCORE, n_samples=2)
    first = Runner(read_experiment(file), Silent(), storage=address)
    first.run()
    first.ledger.samples = 3
    one_left = iter([1, 1])
    count = first.ledger.left
    monkeypatch.setattr(first.ledger, "left", lambda: next(one_left, None) or count())
    assert first.ledger.ask() is not None
    assert first.ledger.ask() is None
    states = [trial.state.name for trial in first.ledger.study.get_trials(deepcopy=False)]
    assert states == ["COMPLETE", "COMPLETE", "RUNNING", "FAIL"]


def test_a_trial_that_no_runner_could_mark_is_taken_up_when_it_is_old(
    experiment: Make, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = experiment(SCORE, n_samples=1)
    first = Runner(read_experiment(file), Silent(), storage=address)
    first.run()
    first.ledger.study.ask()  # and dies before the mark
    assert first.ledger.recover() == []
    monkeypatch.setattr(recovery, "_UNMARKED", datetime.timedelta())
    assert first.ledger.recover() == [1]


def test_an_experiment_stays_with_its_storage(
    experiment: Make, address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(experiment(SCORE, n_samples=1))
    assert main(["run", file, "--storage", "nonsense"]) == 2
    assert main(["run", file, "--storage", address]) == 0
    capsys.readouterr()
    for command in ("run", "report"):
        assert main([command, file]) == 2
        printed = capsys.readouterr().err
        assert "in a storage that runners share\n  give its address with --storage" in printed


def test_an_experiment_in_its_own_file_stays_there(
    experiment: Make, address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(experiment(SCORE, n_samples=1))
    assert main(["run", file]) == 0
    for command in ("run", "report"):
        assert main([command, file, "--storage", address]) == 2
        assert "are in its own study.db, not in a shared storage" in capsys.readouterr().err


def test_a_study_whose_first_runner_died_early_is_shared_all_the_same(
    experiment: Make, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A runner that took it for its own would put back what others run."""
    file, told = experiment(SCORE, n_samples=1), []
    note = Study.set_user_attr

    def die_after_one(study: Study, key: str, value: object) -> None:
        if told:
            raise KeyboardInterrupt
        told.append(key)
        note(study, key, value)

    with monkeypatch.context() as patched:
        patched.setattr(Study, "set_user_attr", die_after_one)
        with pytest.raises(KeyboardInterrupt):
            Runner(read_experiment(file), Silent(), storage=address).run()
    runner = Runner(read_experiment(elsewhere(file)), Silent(), storage=address)
    runner.run()
    assert is_shared(runner.ledger.study)


def test_a_trial_that_was_put_back_is_of_the_runner_that_takes_it(
    experiment: Make, address: str
) -> None:
    file = experiment(SCORE, n_samples=1)
    first = Runner(read_experiment(file), Silent(), storage=address)
    first.run()
    first.ledger.samples = 2
    asked = first.ledger.ask()
    assert asked is not None
    first.ledger.give_back(asked.number, "cut off")
    first.ledger.study.ask()  # by another runner, which is about to mark it
    assert first.ledger.recover() == []


def test_another_experiment_of_the_same_name_is_refused(experiment: Make, address: str) -> None:
    file = experiment(SCORE, n_samples=1)
    Runner(read_experiment(file), Silent(), storage=address).run()
    space = {"range": [0.1, 0.2], "type": "float"}
    entries = [{"op_names": ["a"], "sparsity": space}]
    changed = experiment(
        SCORE, n_samples=1, compression={"compressor": "level", "config_list": entries}
    )
    with pytest.raises(EngineError, match="the storage holds another experiment called test"):
        Runner(read_experiment(elsewhere(changed)), Silent(), storage=address).run()
