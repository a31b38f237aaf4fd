"""Calibrated on two processes that see different batches, as on one that sees them all."""

import pytest
import torch
from decoders import decoder, tokens
from processes import group_of_two, reports_of_two
from torch import distributed

import engine

ENTRY = {"op_types": ["Linear"], "sparsity": 0.5}
CONFIGS = {
    "wanda": {"config_list": [ENTRY]},
    "sparse_gpt": {"config_list": [ENTRY], "damping": [0.1]},
    "gptq": {
        "config_list": [{"op_types": ["Linear"], "quant_types": ["weight"], "quant_bits": 4}],
        "damping": [0.1],
    },
    "ada_round": {
        "config_list": [{"op_types": ["Linear"], "quant_types": ["weight"], "quant_bits": 4}],
        "damping": [0.1],
        "iterations": 50,
    },
}


def compressed(name, batches):
    model = decoder(depth=1)
    config = {"compressor": name, **CONFIGS[name]}
    engine.create_compressor(model, config, batches=batches).compress()
    return model.state_dict()


def part(rank, meet, results):
    with group_of_two(rank, meet):
        made = {name: compressed(name, tokens(4)[rank::2]) for name in CONFIGS}
        file = f"{meet}{rank}.pt"
        torch.save(made, file)
        results.put((rank, file))


@pytest.mark.skipif(not distributed.is_gloo_available(), reason="this torch has no gloo")
def test_two_processes_with_half_of_the_batches_each(tmp_path):
    files = reports_of_two(part, tmp_path / "meet")
    found = [torch.load(files[rank]) for rank in range(2)]
    for name in CONFIGS:
        alone = compressed(name, tokens(4))
        for key, value in alone.items():
            assert torch.equal(found[0][name][key], found[1][name][key])
            if name == "wanda":
                assert torch.equal(found[0][name][key], value)
            else:  # sums of another order, through a decomposition
                differing = (found[0][name][key] - value).abs() > 1e-3
                assert float(differing.float().mean()) < 0.02
