"""Who trains with a compressor that is not attached is told, once, and nobody else is."""

import copy
import gc
import pickle
import warnings

import pytest
import torch
from models import mlp, train_step

from engine.algorithms import AGPPruner, LevelPruner, PTQQuantizer, QAT_Quantizer

HALF = {"op_types": ["Linear"], "sparsity": 0.5}
RISING = {"op_types": ["Linear"], "final_sparsity": 0.5, "end_epoch": 2}
train_step_file = train_step.__code__.co_filename
EIGHT = {"op_types": ["Linear"], "quant_types": ["weight"], "quant_bits": 8}
KINDS = [
    (LevelPruner, HALF, "pruned"),
    (AGPPruner, RISING, "pruned"),
    (QAT_Quantizer, EIGHT, "quantized"),
    (PTQQuantizer, EIGHT, "quantized"),
]


def made(cls, entry):
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return model, optimizer, cls(model, [entry], optimizer)


def steps(model, optimizer):
    train_step(model, optimizer, torch.randn(5, 8))


@pytest.mark.parametrize(("cls", "entry", "done"), KINDS)
@pytest.mark.parametrize("moment", ["update_epoch()", "step()", "its optimizer has stepped"])
def test_the_first_moment_says_that_compress_is_missing(cls, entry, done, moment):
    model, optimizer, compressor = made(cls, entry)
    act = {
        "update_epoch()": lambda: compressor.update_epoch(0),
        "step()": lambda: compressor.step(),
        "its optimizer has stepped": lambda: steps(model, optimizer),
    }[moment]
    with pytest.warns(UserWarning, match="before compress") as caught:
        act()
    (warning,) = caught
    name = compressor.plugin_name
    assert str(warning.message) == (
        f"{name}: {moment} before compress(): nothing is attached to the model, and nothing is "
        f"{done}\n  call model = compressor.compress() first"
    )
    assert warning.filename == (__file__ if "optimizer" not in moment else train_step_file)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        act()
        compressor.update_epoch(1)


@pytest.mark.parametrize(("cls", "entry", "done"), KINDS)
def test_who_compresses_first_hears_nothing(cls, entry, done):
    model, optimizer, compressor = made(cls, entry)
    assert pickle.loads(pickle.dumps(compressor)).step() is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compressor.compress()
        for epoch in range(2):
            compressor.update_epoch(epoch)
            steps(model, optimizer)
            compressor.step()
        compressor.unwrap()
        compressor.update_epoch(2)
        compressor.step()
        steps(model, optimizer)


def test_a_compressor_that_is_gone_says_nothing():
    model, optimizer, compressor = made(LevelPruner, HALF)
    del compressor
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        steps(model, copy.deepcopy(optimizer))
        steps(model, optimizer)
