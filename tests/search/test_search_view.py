"""What a person sees while trials run."""

from __future__ import annotations

import sys

import pytest
from small_search import SCORE, Make

from engine.cli import main
from engine.cli.search_view import LinesView, LiveView, view_for_terminal
from engine.experiment import read_experiment
from engine.experiment.search.runner import Runner


def test_a_pipe_gets_a_line_for_each_trial(
    experiment: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    code = "if number == 1: sys.exit(2)\n" + SCORE
    assert main(["run", str(experiment(code, n_samples=3))]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("test: 3 trials by random, 2 values each, in ")
    assert [line.split(" after ")[0] for line in lines[1:4]] == [
        "trial 0: finished",
        "trial 1: failed: exit code 2",
        "trial 2: finished",
    ]
    assert "\x1b" not in "".join(lines)


def test_a_run_that_goes_on_says_what_is_done(
    experiment: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["run", str(experiment(n_samples=2))])
    capsys.readouterr()
    assert main(["run", str(experiment(n_samples=3))]) == 0
    assert "going on: 2 of 3 are done" in capsys.readouterr().out


def test_all_trials_failed_gives_exit_code_1(
    experiment: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(experiment("sys.exit(1)", n_samples=1))]) == 1
    assert "no trial has finished" in capsys.readouterr().out


def test_the_live_table_shows_each_trial(
    experiment: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    view = LiveView()
    runner = Runner(read_experiment(experiment(n_samples=3)), view)
    runner.run()
    view.end()
    printed = capsys.readouterr().out
    best = runner.ledger.best()
    assert best is not None
    assert f"3 of 3 trials, best {best.value:.6g} (trial {best.number})" in printed
    assert [line.split()[:2] for line in printed.splitlines()[-3:]] == [
        [str(number), "finished"] for number in range(3)
    ]


def test_without_a_terminal_or_rich_there_are_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    assert type(view_for_terminal()) is LinesView
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert type(view_for_terminal()) is LiveView
    assert type(view_for_terminal(plain=True)) is LinesView
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert type(view_for_terminal()) is LinesView


def test_without_optuna_the_extra_is_named(
    experiment: Make, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert main(["run", str(experiment())]) == 2
    assert "pip install 'engine[search]'" in capsys.readouterr().err
