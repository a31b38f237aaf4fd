"""``engine analyze``: tables, JSON, files, exit codes."""

from __future__ import annotations

import json

import pytest
import torch

from engine import cli
from engine.algorithms import L1FilterPruner

NET = """\
import torch
from nets import Residual, Grouped
from torch import nn

def build():
    torch.manual_seed(0)
    return Residual().eval()

class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.fc = nn.Embedding(7, 4), nn.Linear(4, 3)
    def forward(self, tokens, scale):
        return self.fc(self.embed(tokens)) * scale
"""
MODEL = ("--model", "a_net:build", "--input-shape", "2,3,8,8")


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    (tmp_path / "a_net.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    def call(*arguments):
        code = cli.main(["analyze", *map(str, arguments)])
        output, errors = capsys.readouterr()
        return code, output, errors

    return call


@pytest.fixture
def masks(run):
    """A mask file in which the layers that are added disagree."""
    from a_net import build

    pruner = L1FilterPruner(build(), [{"sparsity": 0.5, "op_names": ["stem", "a", "b"]}])
    pruner.compress()
    pruner.export_model("pruned.pth", "masks.pth")
    return "masks.pth"


def test_operations_of_each_layer(run) -> None:
    code, output, errors = run("flops", *MODEL)
    assert (code, errors) == (0, "")
    assert output.splitlines()[1].split() == [
        "stem", "Conv2d", "8x3x3x3", "2x8x8x8", "224", "224", "55.3k", "55.3k",
    ]  # fmt: skip
    code, output, _ = run("flops", *MODEL, "--json", "--output", "f.csv")
    facts = json.loads(output)
    assert facts["flops"] == 2 * 2 * (64 * (8 * 27 + 6 * 72 + 8 * 54) + 24)
    with open("f.csv") as stream:
        assert len(stream.readlines()) == 1 + len(facts["layers"])


def test_masks_and_what_speedup_makes_of_them(run, masks) -> None:
    dense = json.loads(run("flops", *MODEL, "--json")[1])
    masked = json.loads(run("flops", *MODEL, "--json", "--masks", masks)[1])
    assert masked["flops"] == dense["flops"]
    assert masked["masked_flops"] < 0.6 * dense["flops"]
    saved = json.loads(run("flops", *MODEL, "--json", "--state-dict", "pruned.pth")[1])
    assert saved["masked_flops"] == masked["masked_flops"]
    code, output, _ = run("flops", *MODEL, "--masks", masks, "--speedup")
    assert code == 0
    assert output.split()[:9] == [
        "LAYER", "BEFORE", "AFTER", "PARAMS", "NONZERO", "AFTER", "FLOPS", "NONZERO", "AFTER",
    ]  # fmt: skip
    assert "a      6x8x3x3  3x" in output


def test_inputs_of_several_types(run) -> None:
    shapes = ("--input-shape", "2,5:int64", "--input-shape", "1")
    code, output, errors = run("flops", "--model", "a_net:Tokens", *shapes, "--json")
    assert (code, errors) == (0, "")
    assert json.loads(output)["flops"] == 2 * 10 * 12


def test_dependencies_as_text_json_and_csv(run) -> None:
    assert run("dependencies", *MODEL, "--output", "d.csv") == (
        0,
        "Set 1: stem, b\nSet 2: a\n",
        "",
    )
    with open("d.csv") as stream:
        assert stream.read().splitlines()[1] == "Set 1,stem,b"
    _, output, _ = run("dependencies", *MODEL, "--kind", "input", "--json")
    assert json.loads(output) == {"kind": "input", "dependencies": [["a", "head"], ["b"]]}
    grouped = ("--model", "a_net:Grouped", "--input-shape", "1,3,9,9")
    _, output, _ = run("dependencies", *grouped, "--kind", "group", "--json")
    assert json.loads(output)["dependencies"]["first"] == 4


def test_conflicts_are_found_with_exit_code_1_and_fixed(run, masks) -> None:
    code, output, _ = run("conflicts", *MODEL, "--masks", masks, "--fix", "fixed.pth")
    assert code == 1
    assert output.splitlines()[0].split() == ["LAYER", "SET", "FILTERS", "REMOVED", "BY", "ALL"]
    facts = json.loads(run("conflicts", *MODEL, "--masks", masks, "--json")[1])
    assert [layer["name"] for layer in facts[0]["layers"]] == ["stem", "b"]
    code, output, _ = run("conflicts", *MODEL, "--masks", "fixed.pth")
    assert code == 0
    assert output.startswith("no conflicts")
    fixed = torch.load("fixed.pth", weights_only=True)
    assert int((~fixed["stem"]["weight"]).sum()) == 27 * facts[0]["removed_by_all"]


def test_latency_of_one_model_and_of_two(run) -> None:
    code, output, _ = run("latency", *MODEL, "--runs", "3", "--json")
    facts = json.loads(output)
    assert code == 0
    assert facts["latency"]["runs"] == 3
    assert facts["size"]["parameters"] == 4 * (224 + 16 + 438 + 440 + 27)
    code, output, _ = run("latency", *MODEL, "--runs", "3", "--against", "a_net:build")
    assert code == 0
    assert "b takes" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("flops",), "--model, --input-shape"),
        ((), "WHAT"),
        (("flop", *MODEL), "invalid choice: 'flop'"),
        (("flops", "--model", "a_net:bild", "--input-shape", "1"), 'did you mean "build"?'),
        (("flops", *MODEL[:3], "1,x"), 'such as 1,3,224,224, got "1,x"'),
        (("flops", *MODEL[:3], "1,0"), 'got "1,0"'),
        (("flops", *MODEL[:3], "1,3:int46"), 'did you mean "int64"?'),
        (("flops", *MODEL[:3], "1,4,8,8"), "does not run on the example inputs"),
        (("flops", *MODEL, "--masks", "no.pth"), "there is no file no.pth"),
        (("flops", *MODEL, "--state-dict", "no.pth"), "there is no file no.pth"),
        (("flops", *MODEL, "--output", "no/f.csv"), "No such file or directory"),
        (("conflicts", *MODEL), "--masks"),
        (("latency", *MODEL, "--runs", "0"), "runs is at least 1"),
        (("latency", *MODEL, "--against", "a_net"), "--model needs module:factory"),
        (("dependencies", *MODEL, "--kind", "groups"), "invalid choice: 'groups'"),
    ],
)
def test_bad_input_is_explained_with_exit_code_2(run, arguments, message) -> None:
    code, output, errors = run(*arguments)
    assert (code, output) == (2, "")
    assert message in errors
    assert "Traceback" not in errors
