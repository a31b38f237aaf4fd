"""The storage that runners share: who takes what, and what is said when it cannot be used."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from optuna.storages import RDBStorage
from optuna.study import create_study
from small_search import SCORE, Make
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError, ProgrammingError

from engine.cli import main
from engine.experiment.search import storage
from engine.experiment.search.ledger import Ledger


@pytest.fixture
def address(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'shared.db'}"


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


@pytest.mark.parametrize("kind", [IntegrityError, ProgrammingError, OperationalError])
def test_tables_that_another_runner_is_just_making_are_no_error(
    experiment: Make, address: str, monkeypatch: pytest.MonkeyPatch, kind: type[DBAPIError]
) -> None:
    make, made = storage._database, []
    monkeypatch.setattr(storage, "_PAUSES", (0.0, 0.0))

    def late(address: str) -> object:
        made.append(address)
        if len(made) < 3:
            raise kind("CREATE TABLE studies", None, Exception("table studies already exists"))
        return make(address)

    monkeypatch.setattr(storage, "_database", late)
    assert main(["run", str(experiment(SCORE, n_samples=1)), "--storage", address]) == 0
    assert made == [address] * 3


def test_a_server_that_does_not_answer_is_asked_once(
    experiment: Make,
    address: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = []

    def silent(address: str) -> object:
        asked.append(address)
        raise OperationalError("SELECT 1", None, Exception("connection refused"))

    monkeypatch.setattr(storage, "_database", silent)
    assert main(["run", str(experiment()), "--storage", address]) == 2
    assert asked == [address]
    assert capsys.readouterr().err == (
        "--storage cannot be used: connection refused\n"
        "  it needs a server that answers and that has this database and user\n"
    )


def test_a_trial_that_waits_is_taken_by_one_of_two_runners(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one asks between the look at the trial's state and the change."""
    one, two = (
        create_study(storage=storage.shared_storage(address), study_name="a", load_if_exists=True)
        for _ in range(2)
    )
    one.enqueue_trial({})
    taken: list[int] = []
    other = threading.Thread(target=lambda: taken.append(two.ask().number))
    check = RDBStorage.check_trial_is_updatable

    def slowly(self: RDBStorage, *args: Any) -> None:
        check(self, *args)
        if other.ident is None:
            other.start()
            other.join(timeout=0.3)

    monkeypatch.setattr(RDBStorage, "check_trial_is_updatable", slowly)
    taken.append(one.ask().number)
    other.join()
    assert sorted(taken) == [0, 1]


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


@pytest.mark.parametrize("address", ["nonsense", "postgresql://user:secret@nowhere/db"])
def test_a_storage_that_cannot_be_used_is_said_without_its_password(
    experiment: Make, capsys: pytest.CaptureFixture[str], address: str
) -> None:
    assert main(["run", str(experiment()), "--storage", address]) == 2
    printed = capsys.readouterr().err
    assert "--storage cannot be used" in printed
    assert "secret" not in printed
    assert "Traceback" not in printed
