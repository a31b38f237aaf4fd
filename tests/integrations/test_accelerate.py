"""Compression inside a loop that accelerate runs."""

import pytest
import torch
from models import mlp
from torch import nn

import engine
from engine import CheckpointError, EngineError

accelerate = pytest.importorskip("accelerate")
from engine.integrations.accelerate import compress  # noqa: E402
from engine.integrations.given import FILE_NAME  # noqa: E402

ENTRY = {"op_types": ["Linear"], "quant_types": ["weight", "input"], "quant_bits": 8}
CONFIGS = {
    "agp": [{"op_types": ["Linear"], "final_sparsity": 0.75, "end_epoch": 2}],
    "qat": [ENTRY],
    "lsq": [ENTRY],
}


def trained(name, folder, resume=None):
    torch.manual_seed(0)
    model = mlp()
    accelerator = accelerate.Accelerator(cpu=True)
    config = {"compressor": name, "config_list": CONFIGS[name]}
    compressor = compress(accelerator, model, config)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    prepared, optimizer = accelerator.prepare(model, optimizer)
    generator = torch.Generator().manual_seed(1)
    data = torch.randn(4, 8, model[0].in_features, generator=generator)
    begin = 0
    if resume is not None:
        accelerator.load_state(str(resume))
        begin = compressor.epoch + 1
    for epoch in range(begin, 4):
        compressor.update_epoch(epoch)
        for x in data:
            optimizer.zero_grad()
            accelerator.backward(prepared(x).square().mean())
            optimizer.step()
        accelerator.save_state(str(folder / str(epoch)))
    return model, compressor


@pytest.mark.parametrize("name", CONFIGS)
def test_loaded_in_the_middle_it_ends_the_same(name, tmp_path):
    model, compressor = trained(name, tmp_path / "whole")
    again, resumed = trained(name, tmp_path / "again", tmp_path / "whole" / "1")
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value)
    assert str(resumed.state_dict()) == str(compressor.state_dict())


def test_what_does_not_fit_says_so(tmp_path):
    accelerator, model = accelerate.Accelerator(cpu=True), mlp()
    other = engine.create_compressor(mlp(), {"compressor": "qat", "config_list": CONFIGS["qat"]})
    with pytest.raises(EngineError, match="another model"):
        compress(accelerator, model, other)
    trained("agp", tmp_path)
    (tmp_path / "1" / FILE_NAME).unlink()
    with pytest.raises(CheckpointError, match="saved without a compressor"):
        trained("agp", tmp_path / "new", tmp_path / "1")
    assert isinstance(model, nn.Module)
