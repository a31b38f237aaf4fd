"""Several runners, each in a folder of its own, on one study."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from small_search import SCORE, Make, Silent

from engine import EngineError
from engine.cli import main
from engine.experiment import read_experiment
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
    first.ledger.ask()  # and dies
    file = experiment(SCORE, n_samples=3)
    other = Runner(read_experiment(elsewhere(file)), Silent(), storage=address)
    other.run()
    assert other.returned == []
    again = Runner(read_experiment(file), Silent(), storage=address)
    again.run()
    assert again.returned == [2]
    states = [trial.state.name for trial in again.ledger.study.trials]
    assert states == ["COMPLETE", "COMPLETE", "FAIL", "COMPLETE"]


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
