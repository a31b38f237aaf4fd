"""The command line: formats listed, shown, and written with --to."""

import json
import subprocess
import sys

import pytest
import torch
from built_in import EXPORTERS

from engine import cli
from engine.plugins import registry

CONFIG = """\
compressor: ptq
config_list:
  - op_types: [Linear]
    quant_types: [weight]
    quant_bits: 8
"""
MODEL = """\
from torch import nn

def net():
    return nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
"""


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(CONFIG)
    (tmp_path / "made_models.py").write_text(MODEL)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "made_models", raising=False)

    def call(*arguments):
        code = cli.main(list(arguments))
        output, errors = capsys.readouterr()
        return code, output, errors

    return call


BASE = ("export", "config.yaml", "--model", "made_models:net")


def test_built_in_exporters_are_listed_and_ok(run):
    assert [(p.name, p.status) for p in registry.exporters()] == [(n, "ok") for n in EXPORTERS]
    code, output, _ = run("list-algorithms", "--exporters")
    assert code == 0
    assert [line.split()[0] for line in output.splitlines()[1:]] == EXPORTERS
    assert all(line.split()[1:3] == ["exporter", "ok"] for line in output.splitlines()[1:])
    _, output, _ = run("list-algorithms", "--exporters", "--json")
    facts = {each["name"]: each for each in json.loads(output)}
    assert facts["onnx_int4"]["endings"] == [".onnx"]
    assert facts["onnx_int4"]["expresses"]["bits"] == [4, 8]
    code, _, errors = run("list-algorithms", "--exporters", "--extensions")
    assert (code, errors) == (
        2,
        "--extensions and --exporters are two lists: ask for one of them\n",
    )


def test_listing_and_showing_import_no_torch(tmp_path):
    code = (
        "import sys; from engine import cli\n"
        "for words in (['list-algorithms', '--exporters'], ['show', 'onnx_int4']):\n"
        "    assert cli.main(words) == 0\n"
        "assert not {'torch', 'plugins_builtin.onnx_int4'} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_a_format_is_shown_with_what_it_holds(run):
    code, output, _ = run("show", "onnx_int4")
    assert code == 0
    lines = [line.strip() for line in output.splitlines()]
    assert "groups of     16, 32, 64, 128, 256" in lines
    assert "read by       onnxruntime" in lines
    assert lines[-1].endswith("--to onnx_int4 --output model.onnx --set accuracy_level=4")
    assert json.loads(run("show", "gguf", "--json")[1])["example"] == {
        "rest": "float16",
        "name": "my model",
    }
    code, _, errors = run("show", "onnxx")
    assert (code, errors.splitlines()[0]) == (2, 'unknown exporter "onnxx"')


def test_a_file_is_written_and_compared(run, tmp_path):
    torch.save(torch.randn(3, 8), "inputs.pt")
    code, output, errors = run(
        *BASE, "--to", "packed", "--output", "m.pth", "--example", "inputs.pt"
    )
    assert (code, errors) == (0, "")
    assert output == f"{tmp_path / 'm.pth'}: {(tmp_path / 'm.pth').stat().st_size:,} bytes\n"
    code, output, _ = run(*BASE, "--to", "packed", "--output", "n.pth", "--json")
    assert json.loads(output) == {
        "files": {str(tmp_path / "n.pth"): (tmp_path / "n.pth").stat().st_size},
        "operators": [],
    }


def test_options_are_values_of_yaml_and_checked(run, tmp_path):
    pytest.importorskip("onnxscript", reason="needs engine[onnx]")
    words = (*BASE, "--to", "onnx_dynamic", "--output", "m.onnx", "--input-shape", "3,8")
    assert run(*words, "--set", "opset_version=18")[0] == 0
    import onnx

    assert onnx.load("m.onnx").opset_import[0].version == 18
    code, _, errors = run(*words, "--set", "opset_version=soon")
    assert (code, errors.splitlines()[3]) == (2, '  "soon" is text, not a whole number or nothing')
    code, _, errors = run(*words, "--set", "opsetversion")
    assert errors.splitlines() == [
        '--set needs OPTION=VALUE, got "opsetversion"',
        "  did you mean opset_version=...?",
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("--to", "packed", "--onnx", "m.onnx"),
            "--onnx does not go with --to, which writes one thing",
        ),
        (("--to", "packed", "--batches", "x.pt"), "--batches: packed takes no batches"),
        (("--set", "a=1"), "--set and --example are for a format: --to NAME"),
        (("--to", "pakced"), 'unknown exporter "pakced"'),
        (
            ("--to", "packed", "--example", "text.pt"),
            "--example: text.pt holds no tensor, no tuple of",
        ),
    ],
)
def test_mistakes_are_sentences(run, words, message):
    torch.save({"a": "text"}, "text.pt")
    code, _, errors = run(*BASE, "--output", "m.pth", *words)
    assert code == 2
    assert errors.startswith(message)
