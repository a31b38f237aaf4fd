"""One-time experiments: a file, a script, a result."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from engine import BasicConfig, ConfigError, EngineError, print_result
from engine.cli import main
from engine.experiment import read_experiment, result_in
from engine.experiment.one_time import run_once

SECTION = {
    "framework": "torch",
    "type": "pruning",
    "compressor": "level",
    "config_list": [{"op_types": ["default"], "sparsity": 0.5}],
}


def experiment(folder: Path, code: str, **changes: Any) -> Path:
    """Write a script and an experiment that runs it; return the experiment's file."""
    path = folder / "train.py"
    path.write_text(f"#!{sys.executable}\nimport sys\n{code}", encoding="utf-8")
    path.chmod(0o755)
    data = {"name": "test", "script": "train.py", "resource": "cpu", "compression": SECTION}
    data.update(changes)
    file = folder / "experiment.json"
    file.write_text(json.dumps({k: v for k, v in data.items() if v is not None}))
    return file


REPORT = "import engine\nengine.print_result(0.5)\nengine.print_result([0.75, 3])\n"


def test_the_last_result_counts(tmp_path: Path) -> None:
    outcome = run_once(read_experiment(experiment(tmp_path, REPORT)))
    assert outcome.status == "finished"
    assert outcome.result == [0.75, 3.0]


def test_the_script_gets_the_compression_section(tmp_path: Path) -> None:
    script = "print(open(sys.argv[1]).read())\n" + REPORT
    outcome = run_once(read_experiment(experiment(tmp_path, script)))
    job = json.loads((tmp_path / "jobs" / "0.json").read_text())
    assert job == {**SECTION, "save_model": True, "folder_name": str(tmp_path / "models" / "0")}
    assert json.dumps(job, indent=2) in outcome.output.read_text()


def test_each_run_has_files_of_its_own(tmp_path: Path) -> None:
    checked = read_experiment(experiment(tmp_path, REPORT))
    assert [run_once(checked).job for _ in range(2)] == [0, 1]
    assert sorted(p.name for p in (tmp_path / "jobs").iterdir()) == [
        "0.json", "0.out", "0.result.json", "1.json", "1.out", "1.result.json",
    ]  # fmt: skip


def test_a_result_before_a_crash_does_not_count_as_success(tmp_path: Path) -> None:
    outcome = run_once(read_experiment(experiment(tmp_path, REPORT + "sys.exit(3)\n")))
    assert outcome.status == "failed: exit code 3"
    assert not outcome.succeeded


def test_a_script_without_a_result_has_failed(tmp_path: Path) -> None:
    outcome = run_once(read_experiment(experiment(tmp_path, "print('done')\n")))
    assert outcome.status == "failed: the script ended without engine.print_result(score)"


def test_a_script_that_hangs_is_ended_at_its_timeout(tmp_path: Path) -> None:
    code = "import time\nprint('#Auptimizer:0.5', flush=True)\ntime.sleep(60)\n"
    file = experiment(tmp_path, code, resource_args={"timeout": 0.3})
    outcome = run_once(read_experiment(file))
    assert outcome.status == "failed: it did not end within 0.3 s"
    assert outcome.seconds < 10
    assert json.loads((tmp_path / "jobs" / "0.result.json").read_text())["status"] == outcome.status


def test_a_flood_of_output_does_not_outrun_the_timeout(tmp_path: Path) -> None:
    code = "while True: sys.stdout.write('x' * 99 + '\\n')\n"
    file = experiment(tmp_path, code, resource_args={"timeout": 1})
    seen: list[str] = []
    outcome = run_once(read_experiment(file), echo=seen.append)
    assert outcome.status == "failed: it did not end within 1 s"
    assert outcome.seconds < 10
    assert len(seen) > 1000


def test_arguments_of_the_script_come_before_the_file(tmp_path: Path) -> None:
    file = experiment(tmp_path, "print(sys.argv[1:3])\n" + REPORT, script="train.py --epochs '1 0'")
    assert "['--epochs', '1 0']" in run_once(read_experiment(file)).output.read_text()


def test_cpu_hides_every_gpu(tmp_path: Path) -> None:
    script = "import os; print(repr(os.environ['CUDA_VISIBLE_DEVICES']))\n" + REPORT
    assert "''" in run_once(read_experiment(experiment(tmp_path, script))).output.read_text()


def test_passive_asks_a_person(tmp_path: Path) -> None:
    file = experiment(tmp_path, "sys.exit(1)", resource="passive")
    outcome = run_once(read_experiment(file), ask=lambda prompt: "0.9")
    assert outcome.result == [0.9]


@pytest.mark.parametrize(
    ("changes", "pointer", "message"),
    [
        ({"script": "trian.py"}, "/script", "there is no script trian.py"),
        ({"script": "'train.py"}, "/script", "the script cannot be read"),
        ({"workingdir": "nowhere"}, "/workingdir", "there is no folder"),
        ({"name": None}, "", 'there is no "name"'),
        ({"resource": None}, "", 'there is no "resource"'),
        ({"resource": "tpu"}, "/resource", '"tpu"'),
        ({"compression": None}, "", "this is no experiment"),
    ],
)
def test_what_cannot_run_is_refused_before_it_starts(
    tmp_path: Path, changes: dict[str, Any], pointer: str, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        read_experiment(experiment(tmp_path, REPORT, **changes))
    assert [p.pointer for p in caught.value.problems] == [pointer]
    assert message in caught.value.problems[0].message
    assert not (tmp_path / "jobs").exists()


def test_a_script_without_the_run_bit_is_refused_with_the_command_that_sets_it(
    tmp_path: Path,
) -> None:
    file = experiment(tmp_path, REPORT)
    (tmp_path / "train.py").chmod(0o644)
    with pytest.raises(ConfigError, match=r"chmod \+x .*train\.py"):
        read_experiment(file)


def test_a_script_that_cannot_be_started_says_why(tmp_path: Path) -> None:
    file = experiment(tmp_path, REPORT)
    (tmp_path / "train.py").write_text("print(1)\n")
    with pytest.raises(EngineError, match="its first line must name its program"):
        run_once(read_experiment(file))


@pytest.mark.parametrize(
    ("script", "code", "said"),
    [
        (REPORT, 0, "job 0 finished"),
        ("print(1)", 1, "without engine.print_result"),
        ("raise SystemExit(7)", 1, "job 0 failed: exit code 7"),
    ],
)
def test_the_command_says_what_became_of_the_job(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], script: str, code: int, said: str
) -> None:
    assert main(["run", str(experiment(tmp_path, script))]) == code
    printed = capsys.readouterr()
    assert said in printed.out + printed.err
    assert "Traceback" not in printed.err


@pytest.mark.parametrize(
    ("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_stopped_runner_stops_its_script_too(tmp_path: Path, sent: int, code: int) -> None:
    script = "import os, time\nopen('pid', 'w').write(str(os.getpid()))\ntime.sleep(60)\n"
    file = experiment(tmp_path, script)
    command = [sys.executable, "-m", "engine", "run", str(file)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as runner:
        deadline = time.monotonic() + 20
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        runner.send_signal(sent)
        assert runner.wait(timeout=10) == code
        assert runner.stderr is not None
        assert "Traceback" not in runner.stderr.read().decode()
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_result_lines_are_found_behind_other_text() -> None:
    lines = ["50%#Auptimizer:1.5", "#Auptimizer:not a number", "#Auptimizer:2,3\n", "more"]
    assert result_in(lines) == [2.0, 3.0]
    assert result_in(["nothing"]) is None


@pytest.mark.parametrize("value", ["high", [], [1, float("nan")], None])
def test_print_result_refuses_what_is_no_number(value: Any) -> None:
    with pytest.raises(EngineError):
        print_result(value)


def test_basic_config_reads_yaml_and_writes_json_whole(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("compressor: level\nlr: 1e-3\n")
    config = BasicConfig(epochs=3).load(tmp_path / "config.yaml")
    assert (config.compressor, config.lr, config.epochs) == ("level", 1e-3, 3)
    config.save(tmp_path / "copy.json")
    assert BasicConfig().load(tmp_path / "copy.json") == config
    config.model = object()
    with pytest.raises(EngineError, match="cannot be written as JSON"):
        config.save(tmp_path / "copy.json")
    assert "model" not in BasicConfig().load(tmp_path / "copy.json")


def test_basic_config_names_the_nearest_key() -> None:
    with pytest.raises(AttributeError, match="did you mean 'compressor'"):
        _ = BasicConfig(compressor="level").compresor


@pytest.mark.parametrize("value", [float("inf"), [1, float("-inf")]])
def test_print_result_refuses_what_is_not_finite(value: Any) -> None:
    with pytest.raises(EngineError, match="finite"):
        print_result(value)


def test_a_result_that_is_not_finite_has_failed_and_the_record_is_json(tmp_path: Path) -> None:
    outcome = run_once(read_experiment(experiment(tmp_path, "print('#Auptimizer:inf')\n")))
    assert outcome.status == "failed: the result is not finite: inf"
    record = json.loads((tmp_path / "jobs" / "0.result.json").read_text())
    assert record["result"] is None


def test_a_process_that_the_script_leaves_behind_keeps_nobody_waiting(tmp_path: Path) -> None:
    script = (
        "import subprocess\n"
        "child = subprocess.Popen(['sleep', '60'])\n"
        "print('child', child.pid, flush=True)\n" + REPORT
    )
    begun = time.monotonic()
    outcome = run_once(read_experiment(experiment(tmp_path, script)))
    assert outcome.succeeded
    assert time.monotonic() - begun < 30
    pid = int(outcome.output.read_text().split()[1])
    state = Path(f"/proc/{pid}/stat")
    assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z"


def test_lines_are_echoed_as_they_come_and_bytes_that_are_no_text_are_replaced(
    tmp_path: Path,
) -> None:
    script = "sys.stdout.buffer.write(b'a\\xff\\nno newline at the end'); sys.stdout.flush()\n"
    seen: list[str] = []
    run_once(read_experiment(experiment(tmp_path, script)), echo=seen.append)
    assert seen == ["a�\n", "no newline at the end"]


def test_a_relative_export_goes_into_the_jobs_models(tmp_path: Path) -> None:
    script = "import os; print(os.environ['ENGINE_MODEL_FOLDER'])\n" + REPORT
    outcome = run_once(read_experiment(experiment(tmp_path, script)))
    assert str(tmp_path / "models" / "0") in outcome.output.read_text()


def test_passive_without_anybody_who_types_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda prompt: (_ for _ in ()).throw(EOFError))
    assert main(["run", str(experiment(tmp_path, "", resource="passive"))]) == 2
    assert "nobody types a result" in capsys.readouterr().err


def test_a_file_may_say_how_entries_are_searched_without_being_searched(tmp_path: Path) -> None:
    entry = {"op_names": ["a"], "sparsity": 0.5, "expand_op_names": False}
    section = {"compressor": "level", "config_list": [entry]}
    checked = read_experiment(experiment(tmp_path, REPORT, compression=section))
    assert checked.search is None
    assert checked.section["config_list"] == [{"op_names": ["a"], "sparsity": 0.5}]
