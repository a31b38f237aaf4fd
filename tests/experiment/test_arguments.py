"""``@experiment_args``: a configuration as keyword arguments, a result, a saved model."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine import EngineError, experiment_args, save_model
from engine.experiment import result_in


@pytest.fixture
def job(tmp_path: Path) -> Path:
    path = tmp_path / "0.json"
    path.write_text(json.dumps({"compressor": "level", "rate": 0.5, "config_list": []}))
    return path


def test_keys_become_arguments_and_the_value_is_reported(
    job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    @experiment_args
    def main(config: Any, rate: float, epochs: int = 3) -> float:
        assert config.compressor == "level"
        return rate * epochs

    assert main(job) == 1.5
    assert result_in(capsys.readouterr().err.splitlines()) == [1.5]
    assert main(job, rate=2) == 6


def test_the_file_comes_from_the_command_line(
    job: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @experiment_args
    def main(config: Any, rate: float) -> list[float]:
        return [rate, 7]

    monkeypatch.setattr("sys.argv", ["train.py", str(job)])
    assert main() == [0.5, 7]
    assert result_in(capsys.readouterr().err.splitlines()) == [0.5, 7.0]
    monkeypatch.setattr("sys.argv", ["train.py"])
    with pytest.raises(EngineError, match="the file of a configuration is missing"):
        main()


def test_a_missing_argument_is_named_with_the_nearest_key(job: Path) -> None:
    @experiment_args
    def main(config: Any, rates: float) -> float:
        return rates

    with pytest.raises(EngineError, match=r'main needs "rates"(.|\n)*did you mean "rate"'):
        main(job)


def test_keys_that_nobody_takes_are_warned_of(job: Path) -> None:
    @experiment_args
    def main(rate: float) -> float:
        return rate

    with pytest.warns(UserWarning, match="main takes no compressor, config_list"):
        assert main(job) == 0.5


def test_a_function_that_returns_nothing_has_no_score(job: Path) -> None:
    @experiment_args
    def main(config: Any) -> None:
        pass

    with pytest.raises(EngineError, match="returns its score"):
        main(job)


@pytest.mark.parametrize(
    ("wanted", "files"), [("1", ["model.txt"]), ("", None), (None, None)]
)  # fmt: skip
def test_the_model_is_saved_in_the_jobs_own_folder_when_the_runner_wants_it(
    job: Path, monkeypatch: pytest.MonkeyPatch, wanted: str | None, files: list[str] | None
) -> None:
    models = job.parent / "models"
    if wanted is not None:
        monkeypatch.setenv("ENGINE_MODEL_FOLDER", str(models))
        monkeypatch.setenv("ENGINE_SAVE_MODEL", wanted)
    monkeypatch.chdir(job.parent)

    @experiment_args
    def main(config: Any) -> float:
        save_model(_write, "first.txt")
        save_model(_write, "model.txt")
        return 1.0

    main(job)
    assert (sorted(os.listdir(models)) if models.exists() else None) == files
    assert os.getcwd() == str(job.parent)


def _write(name: str) -> None:
    Path(name).write_text("weights")


def test_save_model_takes_a_function() -> None:
    not_one: Any = "model.pth"
    with pytest.raises(EngineError, match="takes a function"):
        save_model(not_one)
    keep: Callable[..., object] = print
    save_model(keep)
