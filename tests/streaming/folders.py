"""Folders of small random models, in shards."""

import json

import torch
from decoders import Decoder
from torch import nn

from engine.export import write_safetensors


def saved(model, folder, shards=3):
    """Write a model's tensors as shards with an index, as transformers does."""
    folder.mkdir()
    seen, state = set(), {}
    for key, value in model.state_dict(keep_vars=True).items():
        if id(value) not in seen:
            seen.add(id(value))
            state[key] = value
    keys = list(state)
    weight_map = {}
    for number in range(shards):
        name = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        own = {key: state[key] for key in keys[number::shards]}
        stated = {key: (value.shape, value.dtype) for key, value in own.items()}
        write_safetensors(folder / name, stated, own.items())
        weight_map |= dict.fromkeys(own, name)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def loaded(folder):
    """Return a folder's tensors by somebody else's reader."""
    from safetensors.torch import load_file

    state = {}
    for file in sorted(folder.glob("*.safetensors")):
        state |= load_file(file)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(state)
    assert {path.name for path in folder.glob("*.safetensors")} == {*index["weight_map"].values()}
    sizes = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    assert index["metadata"]["total_size"] == sizes
    return state


class Mixed(nn.Module):
    """A token of its own, convolutions and norms with statistics in a list, a head in none."""

    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.randn(8, 1, 1))
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.body = nn.ModuleList(
            nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
            for _ in range(4)
        )
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.stem(x) + self.bias
        for layer in self.body:
            x = x + layer(x)
        return self.head(x.mean((2, 3)))


def mixed():
    torch.manual_seed(0)
    model = Mixed()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model.eval()


__all__ = ["Decoder", "loaded", "mixed", "saved"]
