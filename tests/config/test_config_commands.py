"""Whatever is in a configuration: a command ends with a code and a sentence, never a traceback."""

import contextlib
import copy
import io
import json
import random
import sys
import warnings

import pytest
import torch
from test_config_properties import DOCUMENTS, containers
from torch import nn

import engine
from engine import cli
from engine.errors import EngineError

SAMPLES = 60
MANY = 1000
JUNK = [
    *(None, True, False, 0, 1, -1, 1.5, 10**400, -0.0, 1e308, float("nan"), float("inf")),
    *("", "a", "default", "level", "agp", "engine:level", ":", "x:y:z", "\0", "~/0", "é" * 99),
    *([], {}, [[]], [None], ["a", "a"], {"a": {}}, {"": 1}, {"weight": True}, {"config": []}),
]
KEYS = ["", "op_types", "op_name", "exclude", "sparsity", "compression", "compressor", "a", "~"]


def mutated(rng):
    """Return a valid document with one to three things changed, added, renamed or taken away."""
    document = copy.deepcopy(rng.choice(DOCUMENTS))
    for _ in range(rng.choice([1, 1, 2, 3])):
        where = rng.choice(list(containers(document)))
        keys = list(where) if isinstance(where, dict) else list(range(len(where)))
        action = rng.choice(["change", "change", "add", "rename", "remove"])
        if action == "add" or not keys:
            if isinstance(where, dict):
                where[rng.choice(KEYS)] = copy.deepcopy(rng.choice(JUNK))
            else:
                where.append(copy.deepcopy(rng.choice(JUNK)))
            continue
        key = rng.choice(keys)
        if action == "change":
            where[key] = copy.deepcopy(rng.choice(JUNK))
        elif action == "rename" and isinstance(where, dict):
            where[rng.choice(KEYS)] = where.pop(key)
        else:
            del where[key]
    return document


class Net(nn.Module):
    """With the names and types that examples use, as far as one net can have them."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 6, 3)
        self.bn1, self.bn2 = nn.BatchNorm2d(4), nn.BatchNorm2d(6)
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()
        self.fc1, self.fc2 = nn.Linear(24, 8), nn.Linear(8, 3)

    def forward(self, x):
        x = self.relu1(self.bn1(self.conv1(x)))
        x = self.relu2(self.bn2(self.conv2(x)))
        return self.fc2(self.fc1(x.flatten(1)))


def validate(document, folder):
    path = folder / "c.json"
    path.write_text(json.dumps(document))
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        code = cli.main(["validate", str(path)])
    assert code in (0, 2)
    if code == 2:
        assert errors.getvalue().strip()
        assert "Traceback" not in errors.getvalue()
    return code


def create(document):
    """Return whether a compressor could be made of a document, and attached."""
    model = Net()
    before = copy.deepcopy(model.state_dict())
    kept = copy.deepcopy(document)
    config = document.get("compression", document) if isinstance(document, dict) else document
    searches = ("net_adapt", "simulated_annealing", "sensitivity", "auto_compress", "amc", "admm")
    try:
        compressor = engine.create_compressor(model, config)
        if compressor.plugin_name not in searches:
            compressor.compress()
            compressor.unwrap()
        made = True
    except EngineError:
        made = False
    assert repr(document) == repr(kept)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    return made


def run(folder, count, seed):
    rng = random.Random(seed)
    script = folder / "s.py"
    script.write_text(f"#!{sys.executable}\n")
    script.chmod(0o755)
    codes = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(count):
            document = mutated(rng)
            codes.append(validate(document, folder))
            create(document)
    assert set(codes) == {0, 2}


def test_commands_and_create_compressor_end_well(tmp_path):
    run(tmp_path, SAMPLES, seed=0)


@pytest.mark.slow
def test_commands_and_create_compressor_end_well_many_times(tmp_path):
    run(tmp_path, MANY, seed=1)
