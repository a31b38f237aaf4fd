"""Several runners, each in a folder of its own, on one study."""

from __future__ import annotations

import datetime
import shutil
import sys
from pathlib import Path

import pytest
from small_search import SCORE, Make, Silent
from sqlalchemy.exc import IntegrityError, OperationalError

from engine import EngineError
from engine.cli import main
from engine.experiment import read_experiment
from engine.search import recovery, storage
from engine.search.ledger import Ledger
from engine.search.report import collect
from engine.search.runner import Runner


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


def test_a_missing_driver_is_named(
    experiment: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "psycopg2", None)
    file = str(experiment())
    assert main(["run", file, "--storage", "postgresql+psycopg2://me:secret@localhost/x"]) == 2
    assert capsys.readouterr().err == (
        "--storage cannot be used: its driver psycopg2 is not installed\n"
        "  pip install psycopg2-binary\n"
    )


def test_tables_that_another_runner_is_just_making_are_no_error(
    experiment: Make, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, made = storage._database, []

    def late(address: str) -> object:
        made.append(address)
        if len(made) == 1:
            raise IntegrityError("CREATE TABLE studies", None, Exception("it exists"))
        return make(address)

    monkeypatch.setattr(storage, "_database", late)
    assert main(["run", str(experiment(SCORE, n_samples=1)), "--storage", address]) == 0
    assert made == [address, address]


def test_a_storage_that_goes_away_ends_the_run_with_a_sentence_and_loses_nothing(
    experiment: Make,
    address: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = str(experiment("open('runs', 'a').write('x')\n" + SCORE, n_samples=2))
    tell = Ledger.tell

    def gone(*args: object) -> None:
        raise OperationalError("UPDATE trials", None, Exception("server closed"))

    monkeypatch.setattr(Ledger, "tell", gone)
    assert main(["run", file, "--storage", address]) == 2
    assert capsys.readouterr().err == (
        "the shared storage cannot be used: server closed\n"
        "  engine run goes on from here when that is mended\n"
    )
    monkeypatch.setattr(Ledger, "tell", tell)
    assert main(["run", file, "--storage", address]) == 0
    assert (Path(file).parent / "runs").read_text() == "xx"


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


@pytest.mark.parametrize("address", ["nonsense", "postgresql://user:secret@nowhere/db"])
def test_a_storage_that_cannot_be_used_is_said_without_its_password(
    experiment: Make, capsys: pytest.CaptureFixture[str], address: str
) -> None:
    assert main(["run", str(experiment()), "--storage", address]) == 2
    printed = capsys.readouterr().err
    assert "--storage cannot be used" in printed
    assert "secret" not in printed
    assert "Traceback" not in printed
