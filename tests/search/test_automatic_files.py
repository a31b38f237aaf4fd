"""What is wrong with an automatic experiment's file is said before anything starts."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine import ConfigError, config, create_compressor
from engine.cli import main
from engine.experiment import read_experiment

Make = Callable[..., Path]


def section(**entry: Any) -> dict[str, Any]:
    return {"compressor": "level", "config_list": [{"op_names": ["a"], **entry}]}


FLOAT = {"range": [0.2, 0.9], "type": "float"}
GOOD = section(sparsity=FLOAT)


@pytest.mark.parametrize(
    ("changes", "pointer", "message", "suggestion"),
    [
        ({"proposer": "tpee"}, "/proposer", '"tpee" is not one', "tpe"),
        ({"target": "maxx"}, "/target", '"maxx" is not one', "max"),
        ({"n_samples": 0}, "/n_samples", "0 is out of range", None),
        ({"n_samples": FLOAT}, "/n_samples", "a mapping is not a whole number", None),
        ({"n_parallel": 1.5}, "/n_parallel", "1.5 is not a whole number", None),
        ({"resource": "ray"}, "/resource", "Ray is not supported", None),
        ({"resource": "node"}, "/resource", "node needs", None),
        ({"script": "trian.py"}, "/script", "there is no script trian.py", "train.py"),
        ({"n_sample": 3, "n_samples": None}, "/n_sample", "unknown key", "n_samples"),
        ({"model": "net"}, "/model", "not of that form", None),
        ({"job_failure": {"retries": 1}}, "/job_failure/retries", "unknown key", "job_retries"),
        ({"resource_args": {"early_stop": "mediam"}}, "/resource_args/early_stop", "not one",
         "median"),
        ({"target": ["max", "min"]}, "/target", "2 objectives, a result has 1", None),
        ({"runtime_args": {"env": {"A=B": "1"}}}, "/runtime_args/env/A=B", "no variable is called",
         None),
        ({"runtime_args": {"env": {"A": "\0"}}}, "/runtime_args/env/A", "a NUL character", None),
        (
            {"target": ["max", "min"], "proposer": "cmaes",
             "resource_args": {"multi_res_labels": ["size"]}},
            "/proposer", "cmaes takes one objective", None,
        ),
        (
            {"compression": section(sparsity={"range": [0.2, 1.5], "type": "float"})},
            "/compression/config_list/0/sparsity", "1.5 is out of range", None,
        ),
        (
            {"compression": section(sparsity={"range": [0.9, 0.2], "type": "float"})},
            "/compression/config_list/0/sparsity/range", "the range is inverted", "[0.2, 0.9]",
        ),
        (
            {"compression": {**GOOD, "compressor": "levle"}},
            "/compression/compressor", 'unknown algorithm "levle"', "level",
        ),
        (
            {"compression": {**GOOD, "compressor": {"range": ["level", "fpgm"], "type": "choice"}}},
            "/compression/compressor", "cannot be searched", None,
        ),
        (
            {"compression": section(sparsity=FLOAT, expand_op_names=3)},
            "/compression/config_list/0/expand_op_names", "not true or false", None,
        ),
        (
            {"compression": {"compressor": "qat", "config_list": [
                {"op_names": ["a"], "quant_types": ["weight"],
                 "quant_bits": {"range": [2, 8], "type": "float"}}]}},
            "/compression/config_list/0/quant_bits", "is not a whole number", None,
        ),
    ],
)  # fmt: skip
def test_one_mistake_gives_one_problem_with_its_line(
    experiment: Make, changes: dict[str, Any], pointer: str, message: str, suggestion: str | None
) -> None:
    with pytest.raises(ConfigError) as caught:
        read_experiment(experiment(**changes))
    (problem,) = caught.value.problems
    assert problem.pointer == pointer
    assert message in problem.message
    assert problem.suggestion == suggestion
    assert problem.line is not None


WRONG = """\
name: x
scrpt: train.py
resource: cpuu
workingdir: nowhere
proposer: tpee
n_samples: {range: [1, 3], type: int}
compression:
  compressor: level
  config_list:
    - op_names: [a]
      sparsity: {range: [0.9, 0.2], type: float}
    - op_names: [b]
      sparsity: {range: [], type: float}
    - op_names: {range: [c], type: choice}
      sparsity: {range: [0.1, 3], type: float}
    - op_names: [d]
      sparsty: 0.5
"""
FOUND = [
    ("/scrpt", "script", 2),
    ("/resource", "cpu", 3),
    ("/workingdir", None, 4),
    ("/proposer", "tpe", 5),
    ("/n_samples", None, 6),
    ("/compression/config_list/0/sparsity/range", "[0.2, 0.9]", 11),
    ("/compression/config_list/1/sparsity/range", None, 13),
    ("/compression/config_list/2/op_names", None, 14),
    ("/compression/config_list/2/sparsity", None, 15),
    ("/compression/config_list/3/sparsty", "sparsity", 17),
]


@pytest.mark.parametrize("ending", ["yaml", "json"])
def test_all_mistakes_are_told_at_once(tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"wrong.{ending}"
    data = config.read(_written(tmp_path / "wrong.yaml", WRONG)).data
    if ending == "json":
        _written(file, json.dumps(data, indent=1))
    with pytest.raises(ConfigError) as caught:
        read_experiment(file)
    told = [(p.pointer, p.suggestion, p.line) for p in caught.value.problems]
    if ending == "yaml":
        assert told == FOUND
    else:  # on other lines
        assert [each[:2] for each in told] == [each[:2] for each in FOUND]
        assert None not in [line for _, _, line in told]


def _written(file: Path, text: str) -> Path:
    file.write_text(text, encoding="utf-8")
    return file


def test_what_is_wrong_with_the_script_is_told_with_the_rest(experiment: Make) -> None:
    file = experiment(proposer="tpee", script="trian.py")
    (file.parent / "train.py").chmod(0o644)
    with pytest.raises(ConfigError) as caught:
        read_experiment(file)
    assert [(p.pointer, p.suggestion) for p in caught.value.problems] == [
        ("/script", "train.py"),
        ("/proposer", "tpe"),
    ]


def test_an_unknown_compressor_hides_nothing_else(experiment: Make) -> None:
    file = experiment(compression={**section(sparsity={"range": [3], "type": "int"}),
                                   "compressor": "levle"}, script="no.py")  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        read_experiment(file)
    assert {p.pointer for p in caught.value.problems} == {
        "/script",
        "/compression/compressor",
        "/compression/config_list/0/sparsity/range",
    }


def test_a_file_without_a_search_space_has_nothing_to_search(
    experiment: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    file = experiment(compression=section(sparsity=0.5))
    assert main(["run", str(file), "--automatic"]) == 2
    assert "there is nothing to search" in capsys.readouterr().err
    assert sorted(p.name for p in file.parent.iterdir()) == ["experiment.json", "train.py"]


def test_a_search_space_never_reaches_a_compressor(experiment: Make) -> None:
    from torch import nn

    with pytest.raises(ConfigError, match="a search space stands here") as caught:
        create_compressor(nn.Linear(2, 2), experiment())
    assert caught.value.problems[0].pointer == "/compression/config_list/0/sparsity"


def test_each_choice_is_checked() -> None:
    bits = {"range": [4, 8, 99], "type": "choice"}
    entry = {"op_types": ["default"], "quant_types": ["weight"], "quant_bits": bits}
    data = {"name": "x", "compression": {"compressor": "qat", "config_list": [entry]}}
    with pytest.raises(ConfigError, match="99 is out of range"):
        config.check_search(config.read(data))
    bits["range"].remove(99)
    assert config.check_search(config.read(data)).settings.plugin.name == "qat"


def test_validate_shows_what_is_searched(
    experiment: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    file = experiment(proposer="hyperopt", target="min")
    assert main(["validate", str(file)]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        "  automatic pruning by level",
        "  min by tpe, 1 search space",
        "  /compression/config_list/0/sparsity: {range: [0.1, 0.9], type: float}",
    ]


def test_validate_looks_at_the_script_of_a_one_time_experiment(
    experiment: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    file = experiment(compression=section(sparsity=0.5))
    assert main(["validate", str(file)]) == 0
    (file.parent / "train.py").chmod(0o644)
    assert main(["validate", str(file)]) == 2
    assert "may not be run" in capsys.readouterr().err


def test_validate_imports_neither_torch_nor_optuna(experiment: Make) -> None:
    code = (
        "import sys; from engine.cli import main; code = main(sys.argv[1:]);"
        "heavy = {'torch', 'optuna', 'numpy', 'rich'} & sys.modules.keys();"
        "sys.exit(f'{code} {heavy}' if code or heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "validate", str(experiment())],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_control_characters_of_a_file_do_not_reach_the_terminal(
    experiment: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    file = experiment(proposer="\x1b[2Jtpe")
    assert json.loads(file.read_text())["proposer"] == "\x1b[2Jtpe"
    assert main(["validate", str(file)]) == 2
    printed = capsys.readouterr().err
    assert "\\x1b[2Jtpe" in printed
    assert "\x1b" not in printed


@pytest.mark.parametrize(
    ("text", "pointer", "meant"),
    [
        ("compresor: level\nconfig_list: [{op_types: [default], sparsity: 0.5}]\n",
         "/compresor", "compressor"),
        ("compresor: level\n", "/compresor", "compressor"),
        ("name: x\nscript: x\nresource: cpu\ncompresion: {compressor: level}\n",
         "/compresion", "compression"),
    ],
)  # fmt: skip
def test_a_misspelt_key_at_the_top_is_named(
    tmp_path: Path, text: str, pointer: str, meant: str
) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        config.check(tmp_path / "c.yaml")
    assert (caught.value.problems[0].pointer, caught.value.problems[0].suggestion) == (
        pointer,
        meant,
    )


def test_without_optuna_it_is_named_and_nothing_is_written(
    experiment: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = experiment()
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert main(["run", str(file)]) == 2
    assert "pip install 'engine[search]'" in capsys.readouterr().err
    assert sorted(p.name for p in file.parent.iterdir()) == ["experiment.json", "train.py"]
