"""Rows of sparsity and ranges in a file: appended, readable, and the same in both formats."""

import csv
import json

import pytest
import torch
from models import mlp
from watching import agp, train

import engine
from engine import EngineError
from engine.algorithms import QAT_Quantizer
from plugins_builtin.log import COLUMNS, Log


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_row_for_each_layer_and_moment(tmp_path):
    pruner = agp(Log(tmp_path / "log.csv"))
    train(pruner)
    pruner.unwrap()
    found = rows(tmp_path / "log.csv")
    assert tuple(found[0]) == COLUMNS
    assert [row["layer"] for row in found] == ["0", "2"] * 7
    masks = [row for row in found if row["moment"] == "masks"]
    # int(80 * 0.7) of 80 and int(40 * 0.7) of 40, then 0.8
    assert [(row["epoch"], row["step"], row["sparsity"]) for row in masks] == [
        *[("0", "0", "0.0")] * 2,
        *[("1", "3", "0.7")] * 2,
        *[("2", "5", "0.8")] * 2,
    ]
    assert {row["weight_low"] for row in found} == {""}


def test_json_lines_hold_the_same(tmp_path):
    torch.manual_seed(0)
    train(agp(Log(tmp_path / "log.csv", every=2)))
    torch.manual_seed(0)
    train(agp(Log(tmp_path / "log.jsonl", every=2)))
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    as_text = [
        {key: "" if item is None else str(item) for key, item in line.items()} for line in lines
    ]
    assert as_text == rows(tmp_path / "log.csv")
    assert sum(line["moment"] == "step" for line in lines) == 6


def test_ranges_of_a_quantizer_are_logged(tmp_path):
    model = mlp()
    entry = {"quant_types": ["input"], "quant_bits": 8, "op_names": ["0"]}
    quantizer = QAT_Quantizer(model, [entry], extensions=[Log(tmp_path / "log.csv")])
    quantizer.compress()
    x = torch.rand(16, 8) * 3
    model(x)
    quantizer.update_epoch(1)
    (row,) = rows(tmp_path / "log.csv")
    assert (row["sparsity"], row["input_low"], row["weight_low"]) == ("", "0.0", "")
    assert float(row["input_high"]) == pytest.approx(float(x.max()), rel=1e-3)


def test_a_second_run_appends(tmp_path):
    for _ in range(2):
        agp(Log(tmp_path / "log.csv")).unwrap()
    found = rows(tmp_path / "log.csv")
    assert [row["moment"] for row in found] == ["masks", "masks", "end", "end"] * 2


def test_a_file_with_other_columns_is_left_alone(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("a,b\n1,2\n")
    model_before = mlp()
    with pytest.raises(EngineError, match="has other columns than this extension writes"):
        agp(Log(path))
    assert path.read_text() == "a,b\n1,2\n"
    assert "_engine_compressors" not in vars(model_before)


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(EngineError, match=r"cannot write .*nowhere/log.csv: No such file"):
        agp(Log(tmp_path / "nowhere" / "log.csv"))


def test_another_ending_is_refused():
    with pytest.raises(EngineError, match=r'"log.xlsx" must end in .csv or .jsonl'):
        Log("log.xlsx")


def test_the_file_stays_where_it_was_when_the_program_changes_its_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pruner = agp(Log("log.csv"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    train(pruner, epochs=1)
    assert not (tmp_path / "elsewhere" / "log.csv").exists()
    assert len(rows(tmp_path / "log.csv")) == 4


def test_from_a_configuration(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    agp(extensions=[{"log": {"path": "mine.jsonl"}}])
    assert (tmp_path / "mine.jsonl").read_text().count("\n") == 2
    agp(extensions=["log"])
    assert (tmp_path / "compression.csv").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path": "log.txt"}, "/extensions/0/log/path"),
        ({"every": -1}, "log needs: every >= 0"),
        ({"evry": 1}, 'did you mean "every"?'),
    ],
)
def test_wrong_arguments_are_a_problem_of_the_configuration(arguments, message):
    with pytest.raises(engine.ConfigError) as caught:
        agp(extensions=[{"log": arguments}])
    assert message in str(caught.value)
