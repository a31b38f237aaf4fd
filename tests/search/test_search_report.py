"""``engine report``: tables, JSON, CSV and one page."""

from __future__ import annotations

import csv
import html.parser
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_search import SCORE, Make, Silent

from engine.cli import main
from engine.experiment import read_experiment
from engine.experiment.search.folder import Folder
from engine.experiment.search.importance import importances
from engine.experiment.search.plan import Plan, expand
from engine.experiment.search.report import collect
from engine.experiment.search.report.charts import Axis
from engine.experiment.search.report.tables import as_csv
from engine.experiment.search.runner import Runner
from engine.experiment.search.storage import file_storage

Search = Callable[..., tuple[Runner, Silent]]

SAID: dict[str, Any] = {
    "totals": {"params": {"before": 1000, "after": 250}, "flops": {"before": None, "after": None}},
    "measures": {"accuracy": {"before": 98.0, "after": 97.5}},
    "layers": [
        {
            "name": "conv<1>", "type": "Conv2d", "shape_before": [8, 1, 3, 3],
            "shape_after": [4, 1, 3, 3], "sparsity": 0.5, "weight_bits": 8,
            "activation_bits": None,
        }
    ],
}  # fmt: skip
SAYS = f"json.dump({SAID!r}, open(os.environ['ENGINE_REPORT_FILE'], 'w'))\n"


class Page(html.parser.HTMLParser):
    """Collects what a page refers to and what it shows."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [str(v) for k, v in attrs if k in ("src", "href", "srcset")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_report_holds_what_the_trials_said(
    search: Search, capsys: pytest.CaptureFixture[str]
) -> None:
    runner, _ = search(SAYS + SCORE, n_samples=4)
    assert main(["report", str(runner.folder.root)]) == 0
    printed = capsys.readouterr().out
    best = runner.ledger.best()
    assert best is not None
    assert f"best, trial {best.number}:" in printed
    assert ["accuracy", "98", "97.5", "0.995"] in [line.split() for line in printed.splitlines()]
    assert "conv<1>" in printed
    report = json.loads((runner.folder.root / "report.json").read_text())
    assert report["best"] == best.number
    assert report["models"][str(best.number)] == SAID
    assert [trial["values"] for trial in report["trials"]] == [
        t.values for t in runner.ledger.trials()
    ]


def test_the_page_needs_nothing_else_and_shows_names_as_text(search: Search) -> None:
    name = "<script>alert(1)</script>"
    runner, _ = search(SAYS + SCORE, n_samples=4, name=name)
    assert main(["report", str(runner.folder.root)]) == 0
    page = Page((runner.folder.root / "report.html").read_text())
    assert page.links == []
    assert "script" not in page.tags
    assert name in page.text
    assert "conv<1>" in page.text
    assert page.tags.count("svg") == 2  # layers and history
    assert re.search(r"\d+ trials in [\d.,]+ s\.", page.text)


def test_csv_has_a_line_for_each_trial_and_its_values(search: Search) -> None:
    runner, _ = search(n_samples=3, resource_args={"multi_res_labels": []})
    assert main(["report", str(runner.folder.root)]) == 0
    with open(runner.folder.root / "trials.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["sparsity (a)"]) for row in rows] == [
        trial.params["sparsity (a)"] for trial in runner.ledger.trials()
    ]
    assert [float(row["score"]) for row in rows] == [
        trial.value for trial in runner.ledger.trials()
    ]


def test_text_that_a_spreadsheet_would_calculate_is_made_inert() -> None:
    report: dict[str, Any] = {
        "parameters": [{"name": "note"}],
        "objectives": [{"name": "score", "target": "max"}],
        "trials": [
            {"number": 0, "status": "finished", "seconds": 1.0, "values": [1.0], "measures": {},
             "parameters": {"note": "=1+1"}}
        ],
    }  # fmt: skip
    assert "'=1+1" in as_csv(report)


def test_several_objectives_show_their_front(
    search: Search, capsys: pytest.CaptureFixture[str]
) -> None:
    runner, _ = search(
        "report(x[0], x[1])\n",
        n_samples=6,
        target=["max", "min"],
        resource_args={"multi_res_labels": ["size"]},
    )
    report = collect(runner.folder)
    front = {t.number for t in runner.ledger.study.best_trials}
    assert set(report["pareto"]) == front
    assert main(["report", str(runner.folder.root)]) == 0
    assert "Pareto front" in capsys.readouterr().out
    assert "Pareto front" in Page((runner.folder.root / "report.html").read_text()).text


def test_an_experiment_without_a_finished_trial_says_so(
    search: Search, capsys: pytest.CaptureFixture[str]
) -> None:
    runner, _ = search("sys.exit(1)", n_samples=2)
    assert main(["report", str(runner.folder.root)]) == 1
    assert "no trial has finished: there is nothing to compare" in capsys.readouterr().out
    page = Page((runner.folder.root / "report.html").read_text())
    assert "there is nothing to compare" in page.text


def test_an_experiment_that_was_only_begun_says_so(
    experiment: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    checked = read_experiment(experiment())
    folder = Folder.of(checked)
    with folder.owned():
        folder.begin(checked, Plan.of(checked.section))
    assert main(["report", str(folder.root)]) == 1
    assert "no trial has finished" in capsys.readouterr().out


def test_what_is_no_experiment_is_said(
    tmp_path: Path, experiment: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(tmp_path / "no.exp")]) == 2
    assert "there is no" in capsys.readouterr().err
    assert main(["report", str(tmp_path)]) == 2
    assert "is no experiment" in capsys.readouterr().err
    assert main(["report", str(experiment())]) == 2
    assert "has not been run" in capsys.readouterr().err


@pytest.mark.parametrize("with_forest", [True, False])
def test_the_parameter_that_alone_matters_has_the_share(
    search: Search, monkeypatch: pytest.MonkeyPatch, with_forest: bool
) -> None:
    runner, _ = search("report(x[0])\n", n_samples=12)
    if not with_forest:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    found = importances(runner.ledger.study, runner.plan)
    assert found["method"] == ("fANOVA" if with_forest else "correlation ratio")
    assert next(iter(found["shares"])) == "sparsity (a)"
    assert found["shares"]["sparsity (a)"] > 0.7
    assert sum(found["shares"].values()) == pytest.approx(1)


@pytest.mark.parametrize("values", [[0.0], [5, 5], [-1e-9, 1e-9], [3, 4000.0], [-2, -1.5]])
def test_axes_have_a_few_round_ticks_within_them(values: list[float]) -> None:
    axis = Axis(values, 0, 100)
    ticks = axis.ticks()
    assert 2 <= len(ticks) <= 8
    assert all(axis.low <= tick <= axis.high for tick in ticks)
    assert all(0 <= axis.at(value) <= 100 for value in values)


def test_a_runner_that_died_before_its_study_was_made_leaves_an_empty_report(
    experiment: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    read = read_experiment(experiment())
    folder = Folder.of(read)
    with folder.owned():
        folder.begin(read, Plan.of(expand(read.section)))
    file_storage(folder.study)  # tables, and no study
    assert main(["report", str(folder.root)]) == 1
    printed = capsys.readouterr().out
    assert "level by random; no trials" in printed
    assert "no trial has finished" in printed
    assert json.loads((folder.root / "report.json").read_text())["trials"] == []
    assert main(["report", str(folder.root), "--json", "--no-files"]) == 1
    assert json.loads(capsys.readouterr().out)["best"] is None


def test_failed_trials_are_told_with_what_they_said_last(
    search: Search, capsys: pytest.CaptureFixture[str]
) -> None:
    code = "if number: raise RuntimeError('no <room>')\n"
    runner, _ = search(code + SCORE, n_samples=3)
    assert main(["report", str(runner.folder.root)]) == 0
    rows = [line.split("  ") for line in capsys.readouterr().out.splitlines() if "room" in line]
    assert [[cell.strip() for cell in row if cell] for row in rows] == [
        [str(n), "exit code 1: RuntimeError: no <room>", f"jobs/{n}.out"] for n in (1, 2)
    ]
    page = (runner.folder.root / "report.html").read_text(encoding="utf-8")
    assert "RuntimeError: no &lt;room&gt;" in page
