"""``engine validate --model``: which layer gets what, without changing anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.cli import main

NET = """
from torch import nn

def build():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))

def broken():
    raise ValueError("no data")

number = 3
"""
CONFIG = """compressor: agp
config_list:
  - {op_types: [default], final_sparsity: 0.5, end_epoch: 3}
  - {op_names: ["%s"], exclude: true}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "dry_run_net.py").write_text(NET)
    (tmp_path / "config.yaml").write_text(CONFIG % "3")
    return tmp_path


def test_the_table_shows_each_layer_and_its_entry(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["validate", "config.yaml", "--model", "dry_run_net:build"]) == 0
    table = capsys.readouterr().out.partition("1 of 3 layers:\n")[2].splitlines()
    assert [line.split()[:4] for line in table] == [
        ["LAYER", "TYPE", "SHAPE", "ENTRY"],
        ["0", "Conv2d", "4x1x3x3", "0"],
        ["1", "BatchNorm2d", "4", "-"],
        ["3", "Linear", "2x4", "-"],
    ]
    assert "final_sparsity 0.5" in table[1]


def test_a_layer_that_does_not_exist_is_reported_with_its_line(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "config.yaml").write_text(CONFIG % "33")
    assert main(["validate", "config.yaml", "--model", "dry_run_net:build"]) == 2
    assert capsys.readouterr().err == (
        "config.yaml: 1 problem\n\n"
        "/config_list/1/op_names/0   (line 4)\n"
        '  the model has no layer "33"\n'
        "  layers are: 3, ...\n"
        '  did you mean "3"?\n'
    )


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("dry_run_net", "--model needs module:factory"),
        ("no_such_net:build", 'the module "no_such_net" cannot be imported'),
        ("dry_run_net:biuld", 'did you mean "build"?'),
        ("dry_run_net:number", 'has no function "number"'),
        ("dry_run_net:broken", "dry_run_net:broken failed: ValueError: no data"),
        ("dry_run_net:print", 'has no function "print"'),
    ],
)
def test_what_is_no_model_is_said_in_one_message(
    folder: Path, capsys: pytest.CaptureFixture[str], target: str, said: str
) -> None:
    assert main(["validate", "config.yaml", "--model", target]) == 2
    printed = capsys.readouterr().err
    assert said in printed
    assert "Traceback" not in printed
