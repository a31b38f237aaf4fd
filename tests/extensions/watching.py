"""A small training that extensions watch."""

import torch
from models import mlp

import engine
from engine.algorithms import AGPPruner

LAYERS = ["0", "2"]


def agp(*extensions, **config):
    """Return AGP over the layers 0 (10 x 8) and 2 (4 x 10) of a perceptron, 0.8 in epoch 2."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    entry = {"final_sparsity": 0.8, "end_epoch": 2, "op_types": ["default"]}
    if config:
        section = {"compressor": "agp", "config_list": [entry], **config}
        pruner = engine.create_compressor(model, section, optimizer)
    else:
        pruner = AGPPruner(model, [entry], optimizer, extensions=extensions)
    pruner.compress()
    return pruner


def train(compressor, epochs=3, steps=2, first=0):
    for epoch in range(first, first + epochs):
        compressor.update_epoch(epoch)
        for _ in range(steps):
            compressor.optimizer.zero_grad()
            compressor.bound_model(torch.randn(4, 8)).square().sum().backward()
            compressor.optimizer.step()
