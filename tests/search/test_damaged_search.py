"""Whatever becomes of an experiment's own files: its report and its next run end in a sentence."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
from damage import damaged
from small_search import SCORE, Make

from engine.cli import main

SAMPLES = 8
MANY = 100


def try_all(file: Path, count: int, seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    folder = file.parent / "test.exp"
    whole = file.parent / "whole"
    shutil.copytree(folder, whole)
    rng = random.Random(seed)
    codes = []
    for _ in range(count):
        shutil.rmtree(folder)
        shutil.copytree(whole, folder)
        name = rng.choice(["experiment.json", "experiment.json", "study.db", "best.json"])
        way, content = damaged((folder / name).read_bytes(), name, rng)
        (folder / name).write_bytes(content)
        for command in (["report", str(folder), "--no-files"], ["run", str(file), "--quiet"]):
            capsys.readouterr()
            codes.append(main(command))
            said = capsys.readouterr().err
            assert codes[-1] in (0, 1, 2), (name, way)
            assert "Traceback" not in said, (name, way)
            assert bool(said) or codes[-1] != 2
    assert 2 in codes


def test_damage_is_told(experiment: Make, capsys: pytest.CaptureFixture[str]) -> None:
    file = experiment(SCORE, n_samples=1)
    assert main(["run", str(file), "--quiet"]) == 0
    try_all(file, SAMPLES, 0, capsys)


@pytest.mark.slow
def test_much_damage_is_told(experiment: Make, capsys: pytest.CaptureFixture[str]) -> None:
    file = experiment(SCORE, n_samples=1)
    assert main(["run", str(file), "--quiet"]) == 0
    try_all(file, MANY, 1, capsys)


def test_an_experiment_that_was_edited_is_not_gone_on_with(
    experiment: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    file = experiment(SCORE, n_samples=1)
    assert main(["run", str(file), "--quiet"]) == 0
    kept = file.parent / "test.exp" / "experiment.json"
    kept.write_text(kept.read_text().replace("0.", "1.", 1))
    capsys.readouterr()
    assert main(["run", str(file), "--quiet"]) == 2
    assert "is damaged: it is not what was written" in capsys.readouterr().err
