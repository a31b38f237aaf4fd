"""An automatic experiment from beginning to end, with scripts that take milliseconds."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import pytest
from small_search import HEAD, SCORE, SPACE, Make, Silent, alive

from engine import EngineError
from engine.cli import main
from engine.experiment import read_experiment
from engine.experiment.one_time import run_once
from engine.experiment.search.executors import threads
from engine.experiment.search.folder import Folder
from engine.experiment.search.runner import Runner

Search = Callable[..., tuple[Runner, Silent]]


def states(runner: Runner) -> list[str]:
    return [trial.state.name for trial in runner.ledger.study.get_trials(deepcopy=False)]


def test_scores_belong_to_the_values_that_ran(search: Search) -> None:
    runner, _ = search(n_samples=6, n_parallel=3)
    for trial in runner.ledger.trials():
        job = json.loads(runner.folder.job(trial.number).config.read_text())
        x = [entry["sparsity"] for entry in job["config_list"]]
        assert x == [trial.params["sparsity (a)"], trial.params["sparsity (b)"]]
        assert trial.values == [1 - sum((each - 0.3) ** 2 for each in x)]
    assert states(runner) == ["COMPLETE"] * 6


def test_the_best_configuration_runs_as_a_one_time_experiment(search: Search) -> None:
    runner, _ = search(n_samples=4)
    best = runner.ledger.best()
    assert best is not None
    assert best.value == max(
        trial.value for trial in runner.ledger.trials() if trial.value is not None
    )
    # The script takes its number from the file's name, as it did in the search.
    assert run_once(read_experiment(runner.folder.best)).result == best.values


def test_min_means_the_smallest(search: Search) -> None:
    runner, _ = search(n_samples=4, target="min")
    best = runner.ledger.best()
    assert best is not None
    assert best.value == min(
        trial.value for trial in runner.ledger.trials() if trial.value is not None
    )


def test_a_second_run_has_nothing_left_to_do_and_a_larger_one_goes_on(search: Search) -> None:
    search()
    _, view = search()
    assert view.ends == []
    more, view = search(n_samples=5)
    assert [end[0] for end in view.ends] == [3, 4]
    points = [tuple(trial.params.values()) for trial in more.ledger.trials()]
    assert len(set(points)) == 5, "the seed of the second run must not repeat the first one's"


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("report(1)\nsys.exit(3)", "failed: exit code 3"),
        ("print('nothing')", "failed: the script ended without engine.print_result(score)"),
        ("report(float('nan'))", "failed: the result is not finite: nan"),
        ("report(1)\nos.kill(os.getpid(), 9)", "failed: killed by SIGKILL"),
    ],
)
def test_a_trial_that_fails_is_recorded_with_its_output_and_the_rest_goes_on(
    search: Search, code: str, status: str
) -> None:
    whole = f"print('hello from', number)\nif number == 1:\n {'; '.join(code.splitlines())}\n"
    runner, view = search(whole + "else:\n " + SCORE)
    assert states(runner) == ["COMPLETE", "FAIL", "COMPLETE"]
    assert view.ends[1][1] == status
    assert "hello from 1" in runner.folder.job(1).output.read_text()
    assert runner.ledger.trials()[1].user_attrs["status"] == status


def test_a_trial_that_hangs_is_ended_with_all_that_it_started(search: Search) -> None:
    code = (
        "import subprocess\n"
        "if number == 0:\n"
        " child = subprocess.Popen(['sleep', '60'])\n"
        " open('child', 'w').write(str(child.pid))\n"
        " time.sleep(60)\n"
    )
    runner, view = search(code + SCORE, n_samples=2, resource_args={"timeout": 0.4})
    assert view.ends[0][1] == "failed: it did not end within 0.4 s"
    assert states(runner) == ["FAIL", "COMPLETE"]
    assert not alive(int((runner.experiment.folder / "child").read_text()))


def test_a_failed_configuration_is_tried_again(search: Search) -> None:
    code = "open(f'try{number}', 'w')\nif number == 0: sys.exit(1)\n"
    runner, _ = search(code + SCORE, n_samples=2, job_failure={"job_retries": 1})
    trials = runner.ledger.study.get_trials(deepcopy=False)
    assert states(runner) == ["FAIL", "COMPLETE", "COMPLETE"]
    assert trials[1].params == trials[0].params
    assert [trial.number for trial in runner.ledger.trials()] == [1, 2]


def test_retries_end(search: Search) -> None:
    runner, _ = search("sys.exit(1)", n_samples=1, job_failure={"job_retries": 2})
    assert states(runner) == ["FAIL"] * 3
    assert len(runner.ledger.trials()) == 1


def test_ignore_fail_false_stops_at_the_first_failure(search: Search) -> None:
    with pytest.raises(EngineError, match="trial 0 failed: exit code 4; ignore_fail is false"):
        search("sys.exit(4)", job_failure={"ignore_fail": False})


def test_a_script_that_always_fails_is_not_run_a_hundred_times(search: Search) -> None:
    with pytest.raises(EngineError, match="the first 5 trials failed"):
        search("sys.exit(4)", n_samples=100)


def test_a_grid_is_run_point_by_point(search: Search) -> None:
    space = {"range": [0.2, 0.4], "type": "float", "n": 2}
    entries = [{"op_names": ["a", "b"], "sparsity": space}]
    runner, _ = search(
        proposer="sequence",
        n_samples=None,
        compression={"compressor": "level", "config_list": entries},
    )
    points = [tuple(trial.params.values()) for trial in runner.ledger.trials()]
    assert points == [(0.2, 0.2), (0.2, 0.4), (0.4, 0.2), (0.4, 0.4)]


@pytest.mark.parametrize("proposer", ["tpe", "cmaes", "gp", "nsga2", "hyperband"])
def test_each_proposer_proposes(search: Search, proposer: str) -> None:
    runner, _ = search(n_samples=6, proposer=proposer)
    assert len({tuple(trial.params.values()) for trial in runner.ledger.trials()}) == 6


def test_several_objectives_and_their_front(search: Search) -> None:
    code = "report(x[0], x[1])\n"
    runner, _ = search(
        code, n_samples=6, target=["max", "min"], resource_args={"multi_res_labels": ["size"]}
    )
    front = {t.number for t in runner.ledger.study.best_trials}
    kept = {int(p.stem) for p in (runner.folder.root / "pareto").iterdir()}
    assert kept == front, "Optuna's own front"
    assert runner.ledger.study.metric_names == ["score", "size"]


def test_labels_name_the_other_numbers(search: Search) -> None:
    runner, view = search(
        "report(1, number) if number else report(1)\n",
        n_samples=2,
        resource_args={"multi_res_labels": ["size"]},
    )
    assert view.ends[0][1] == "failed: 1 numbers were reported, not 2: the score, size"
    assert runner.ledger.trials()[1].user_attrs["size"] == 1


def test_a_poor_trial_is_stopped_early(search: Search) -> None:
    code = "for step in range(3):\n report(1.0 if number < 3 else 0.1)\n time.sleep(0.1)\n"
    runner, view = search(code, n_samples=4, resource_args={"early_stop": "median"})
    assert states(runner) == ["COMPLETE"] * 3 + ["PRUNED"]
    assert view.ends[3][1] == "stopped early"
    assert "report" not in runner.folder.job(3).output.read_text()


def test_only_the_best_models_stay(search: Search) -> None:
    code = (
        "folder = os.environ['ENGINE_MODEL_FOLDER']\n"
        "os.makedirs(folder)\n"
        "open(folder + '/model.pth', 'w').write(str(number))\n"
    )
    runner, _ = search(code + SCORE, n_samples=4, n_parallel=2)
    best = runner.ledger.best()
    assert best is not None
    models = runner.folder.root / "models"
    assert [p.name for p in models.iterdir()] == [str(best.number)]
    assert (models / str(best.number) / "model.pth").read_text() == str(best.number)


def test_trials_beside_each_other_share_the_cores(search: Search) -> None:
    code = "assert os.environ['OMP_NUM_THREADS'] == os.environ['MKL_NUM_THREADS'] == '%s'\n"
    share = threads(2)["OMP_NUM_THREADS"]
    runner, _ = search(code % share + SCORE, n_samples=2, n_parallel=2)
    assert states(runner) == ["COMPLETE"] * 2
    assert int(share) == max(1, len(os.sched_getaffinity(0)) // 2)


def test_the_users_environment_wins(search: Search) -> None:
    code = "assert os.environ['OMP_NUM_THREADS'] == '7'\nassert os.environ['DATA'] == 'here'\n"
    runtime = {"env": {"OMP_NUM_THREADS": "7", "DATA": "here"}}
    runner, _ = search(code + SCORE, n_samples=2, n_parallel=2, runtime_args=runtime)
    assert states(runner) == ["COMPLETE"] * 2


def test_each_gpu_trial_sees_a_gpu_of_its_own(search: Search) -> None:
    code = "time.sleep(0.2)\nreport(int(os.environ['CUDA_VISIBLE_DEVICES']))\n"
    runner, _ = search(
        code, n_samples=2, n_parallel=2, resource="gpu", resource_args={"devices": [3, 5]}
    )
    assert sorted(trial.value for trial in runner.ledger.trials() if trial.value) == [3, 5]


def test_more_trials_than_gpus_are_refused(experiment: Make) -> None:
    file = experiment(n_parallel=2, resource="gpu", resource_args={"devices": [0]})
    with pytest.raises(EngineError, match="n_parallel is 2, and there is 1 GPU"):
        Runner(read_experiment(file), Silent())


def test_passive_asks_until_a_number_is_typed(experiment: Make) -> None:
    answers, said = iter(["0.5", "much", "0.75", ""]), []
    runner = Runner(
        read_experiment(experiment(resource="passive", n_parallel=4)),
        Silent(),
        ask=lambda prompt: next(answers),
        say=said.append,
    )
    (best,) = runner.run()
    assert best.value == 0.75
    assert states(runner) == ["COMPLETE", "COMPLETE", "FAIL"]
    assert any("a number is needed" in line for line in said)
    assert str(runner.folder.job(0).config) in said[0]


def test_another_experiment_is_not_mixed_in(search: Search) -> None:
    search()
    with pytest.raises(EngineError, match="begun with another target"):
        search(target="min")
    entry = {"op_names": ["a"], "sparsity": {"range": [0.1, 0.2], "type": "float"}}
    with pytest.raises(EngineError, match="begun with another compression"):
        search(compression={"compressor": "level", "config_list": [entry]})


def test_a_second_runner_is_refused(experiment: Make) -> None:
    checked = read_experiment(experiment())
    with (
        Folder.of(checked).owned(),
        pytest.raises(EngineError, match=rf"in use by process {os.getpid()}"),
    ):
        Runner(checked, Silent()).run()


def test_any_optuna_tool_reads_the_study(search: Search) -> None:
    runner, _ = search()
    study = optuna.load_study(study_name=None, storage=f"sqlite:///{runner.folder.study}")
    assert len(study.trials) == 3
    assert study.best_value == max(t.value for t in runner.ledger.trials() if t.value is not None)


def test_a_model_gives_layers_of_a_type_a_value_each(
    search: Search, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "small_net_for_search.py").write_text(
        "from torch import nn\n"
        "def build():\n"
        "    layers = nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2, 2), nn.Linear(2, 2)\n"
        "    return nn.Sequential(*layers)\n"
    )
    monkeypatch.setattr("sys.path", list(sys.path))
    space = {"range": [0.1, 0.9], "type": "float"}
    entries: list[dict[str, Any]] = [
        {"op_types": ["default"], "sparsity": space},
        {"op_names": ["3"], "exclude": True},
    ]
    runner, _ = search(
        "report(1)\n",
        model="small_net_for_search:build",
        compression={"compressor": "level", "config_list": entries},
    )
    assert [each.name for each in runner.plan.parameters] == ["sparsity (0)", "sparsity (2)"]


def test_a_model_that_does_not_load_leaves_no_folder(search: Search, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="no_such_module"):
        search(model="no_such_module:build")
    assert not list(tmp_path.glob("**/*.exp"))


def test_names_and_folders_may_hold_what_means_something_elsewhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "ördner {x}?a=1#b%20 'c'"
    folder.mkdir()
    (folder / "tr ain.py").write_text(HEAD + SCORE)
    (folder / "tr ain.py").chmod(0o755)
    name = "<b>Süße</b> {Suche} & mehr"
    entry = {"op_names": ["a<i>"], "sparsity": SPACE}
    data = {
        "name": name, "script": "'tr ain.py'", "resource": "cpu", "n_samples": 2,
        "compression": {"compressor": "level", "config_list": [entry]},
    }  # fmt: skip
    file = folder / "süche.yaml"
    file.write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
    assert main(["run", str(file)]) == 0
    assert main(["run", str(file)]) == 0
    assert "going on: 2 of 2" in capsys.readouterr().out
    assert main(["report", str(file)]) == 0
    root = Folder.of(read_experiment(file)).root
    page = (root / "report.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;Süße&lt;/b&gt;" in page
    assert "<b>Süße" not in page
    assert "a<i>" not in page
    best = json.loads((root / "best.json").read_text(encoding="utf-8"))
    capsys.readouterr()
    assert main(["run", str(root / "best.json"), "--quiet"]) == 0
    report = json.loads((root / "report.json").read_text(encoding="utf-8"))
    values = report["trials"][report["best"]]
    printed = capsys.readouterr().out
    assert float(printed.rpartition(" ")[2]) == pytest.approx(values["values"][0], abs=1e-5)
    (sparsity,) = values["parameters"].values()
    assert best["compression"]["config_list"] == [{"op_names": ["a<i>"], "sparsity": sparsity}]


@pytest.mark.parametrize("loss", ["gone", "empty", "older"])
def test_files_of_trials_that_the_study_does_not_know_are_not_written_over(
    search: Search, loss: str
) -> None:
    runner, _ = search(n_samples=2)
    study, older = runner.folder.study, runner.folder.root / "older.db"
    with closing(sqlite3.connect(study)) as now, closing(sqlite3.connect(older)) as kept:
        now.backup(kept)
    search(n_samples=3)
    for beside in runner.folder.root.glob("study.db-*"):  # its write-ahead log
        beside.unlink()
    if loss == "older":
        shutil.move(older, study)
    else:
        study.unlink()
        if loss == "empty":
            study.touch()
    before = {file: file.read_bytes() for file in (runner.folder.root / "jobs").iterdir()}
    said = "has 2 trials only" if loss == "older" else "is gone or empty"
    with pytest.raises(EngineError, match=f"has files of 3 trials, .+ {said}: .+\n  put study.db"):
        search(n_samples=5, random_seed=7)
    assert {file: file.read_bytes() for file in before} == before
