"""``engine compress-folder``."""

import pytest
from decoders import decoder
from folders import loaded, saved

from engine.cli import main

pytest.importorskip("safetensors", reason="needs engine[safetensors]")

OWN = """
import torch
from decoders import Decoder, tokens

def build():
    return Decoder()

def batches():
    return tokens()
"""
CONFIG = """
compressor: wanda
config_list:
  - op_types: [Linear]
    sparsity: 0.5
"""


def test_a_folder_on_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_decoder.py").write_text(OWN)
    (tmp_path / "wanda.yaml").write_text(CONFIG)
    folder = saved(decoder(), tmp_path / "dense")
    command = ["compress-folder", str(folder), "wanda.yaml", "small"]
    command += ["--model", "own_decoder:build", "--batches", "own_decoder:batches"]
    assert main(command) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "1/6  embed"
    assert printed[5] == "6/6  head"
    assert printed[6].startswith(f"{tmp_path / 'small'}: 7 files, ")
    assert 0.4 < float((loaded(tmp_path / "small")["head.weight"] == 0).float().mean()) < 0.6
    assert main(command) == 2
    assert capsys.readouterr().err.startswith(f"{tmp_path / 'small'} is there already")
