"""Whatever becomes of a file: it is refused in a sentence, or loads what was written.

A file whose content is another one of the right form, made with PyTorch or an editor and without a
digest, is no damage: it may load what it says.
"""

from __future__ import annotations

import copy
import json
import random
import warnings
from pathlib import Path

import pytest
import torch
from damage import damaged
from torch import nn

import engine
from engine.algorithms import AGPPruner, L1FilterPruner, LSQQuantizer, QAT_Quantizer
from engine.analysis import SensitivityAnalysis
from engine.errors import EngineError

SAMPLES = 12
MANY = 1400


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 6, 3, padding=1),
        nn.Flatten(),
        nn.Linear(54, 4),
    )


def x():
    return torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0))


LAYERS = {"op_types": ["Conv2d", "Linear"]}
FILTERS = [{"op_types": ["Conv2d"], "sparsity": 0.5}]
EIGHT = [{**LAYERS, "quant_types": ["weight", "input"], "quant_bits": 8}]
JOB = {
    "framework": "torch",
    "type": "pruning",
    "compressor": "level",
    "config_list": [{"op_types": ["default"], "sparsity": 0.5}],
    "save_model": True,
    "folder_name": "models/0",
}
RISING = [{"op_types": ["Conv2d"], "final_sparsity": 0.5, "end_epoch": 3}]


def values(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def same(ours, theirs):
    return ours.keys() == theirs.keys() and all(
        torch.equal(value, theirs[key]) for key, value in ours.items()
    )


class Kind:
    """One kind of file: how it is written, and read onto something of which values can be taken."""

    def __init__(self, name, write, fresh, load, taken, *, signed=True):
        self.name, self.write, self.fresh, self.load, self.taken = name, write, fresh, load, taken
        self.signed = signed  # else it is of a person's own torch.save, which signs nothing


def qat():
    quantizer = QAT_Quantizer(net(), EIGHT)
    quantizer.compress()(x())
    return quantizer


def attached():
    quantizer = QAT_Quantizer(net(), EIGHT)
    quantizer.compress()
    return quantizer


def grids(quantizer):
    """Return what activations are rounded to; a change beyond single precision is none."""
    names = ("input_scale", "input_zero_point", "input_qmin", "input_qmax")
    wrappers = quantizer.get_modules_wrapper()
    return [[f"{float(getattr(w, name)):.5g}" for name in names] for w in wrappers]


def l1(**arguments):
    pruner = L1FilterPruner(net(), FILTERS, **arguments)
    pruner.compress()
    return pruner


def agp():
    pruner = AGPPruner(net(), RISING)
    pruner.compress()
    return pruner


def lsq():
    quantizer = LSQQuantizer(net(), EIGHT)
    quantizer.compress()(x())
    return quantizer


def save_state(compressor, path):
    torch.save(compressor.state_dict(), path)


def load_state(compressor, path):
    try:
        state = torch.load(path, weights_only=True)
    except Exception as error:
        raise EngineError("the reader's own torch.load refuses it") from error
    compressor.load_state_dict(state)


def state_values(compressor):
    plain = copy.deepcopy(compressor.state_dict())
    return json.loads(json.dumps(plain, default=lambda t: t.tolist(), sort_keys=True)), values(
        compressor.bound_model
    )


def speed_up(path):
    pruner = l1(dependency_aware=True, dummy_input=x())
    engine.save_compressed(pruner.apply_speedup(x()), path)


def load_small(holder, path):
    holder["model"] = engine.load_compressed(holder["model"], path)


def analysis(path):
    model = net()
    metric = lambda: float(model(x()).mean())  # noqa: E731
    return SensitivityAnalysis(model, metric, sparsities=[0.25, 0.5], progress=path)


KINDS = [
    Kind(
        "mask.pth",
        lambda path: l1().export_model(path.with_name("m.pth"), path),
        net,
        lambda model, path: engine.apply_masks(model, path),
        values,
    ),
    Kind(
        "packed.pth",
        lambda path: qat().export_model(path),
        net,
        lambda model, path: engine.load_quantized(model, path),
        values,
    ),
    Kind(
        "packed.safetensors",
        lambda path: qat().export_model(path),
        net,
        lambda model, path: engine.load_quantized(model, path),
        values,
    ),
    Kind(
        "ranges.json",
        lambda path: qat().export_model(path.with_name("q.pth"), path),
        attached,
        lambda quantizer, path: quantizer.load_calibration(path),
        grids,
    ),
    Kind(
        "small.pt",
        speed_up,
        lambda: {"model": net()},
        load_small,
        lambda holder: values(holder["model"]),
    ),
    Kind(
        "progress.json",
        lambda path: analysis(path).analysis(),
        dict,
        lambda holder, path: holder.update(analysis(path).sensitivities),
        dict,
    ),
    Kind(
        "job.json",
        lambda path: path.write_text(json.dumps(JOB)),
        engine.BasicConfig,
        lambda job, path: job.load(path),
        dict,
        signed=False,
    ),
    Kind(
        "pruner.pt",
        lambda path: save_state(agp(), path),
        agp,
        load_state,
        state_values,
        signed=False,
    ),
    Kind(
        "qat.pt", lambda path: save_state(qat(), path), qat, load_state, state_values, signed=False
    ),
    Kind(
        "lsq.pt", lambda path: save_state(lsq(), path), lsq, load_state, state_values, signed=False
    ),
]


def try_all(kind: Kind, folder: Path, count: int, seed: int) -> None:
    path = folder / kind.name
    kind.write(path)
    data = path.read_bytes()
    right = kind.fresh()
    kind.load(right, path)
    wanted = kind.taken(right)
    rng = random.Random(seed)
    refused = 0
    for number in range(count):
        way, content = damaged(data, kind.name, rng)
        path.write_bytes(content)
        holder = kind.fresh()
        before = kind.taken(holder)
        try:
            kind.load(holder, path)
        except EngineError:
            refused += 1
            unchanged = repr(kind.taken(holder)) == repr(before)
            assert unchanged, (number, way)
            continue
        if way != "other" and kind.signed:
            assert repr(kind.taken(holder)) == repr(wanted), (number, way)
    assert refused > count / 4


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_damage_is_refused_or_changes_nothing(kind: Kind, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try_all(kind, tmp_path, SAMPLES, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_much_damage_is_refused_or_changes_nothing(kind: Kind, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try_all(kind, tmp_path, MANY // len(KINDS), seed=1)
