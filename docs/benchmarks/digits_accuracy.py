"""Accuracy on handwritten digits: five seeds, a CNN of 36,000 parameters, 450 test images.

    python docs/benchmarks/digits_accuracy.py [--seeds 5]

Each seed trains one float32 network; every algorithm starts from a copy of it (BNN, which needs its
own network, from scratch).
"""

import argparse
import copy
import sys
from pathlib import Path

import torch
from scores import Scores
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
from digits_net import DigitsNet, accuracy, load, train_epoch

import engine

ENDS = {"op_names": ["conv1", "fc2"], "exclude": True}
LAYERS = {"op_types": ["Conv2d", "Linear"]}


class BinaryDigitsNet(nn.Sequential):
    """A batch norm before each binarized input, the first layer's input left as it is."""

    def __init__(self):
        super().__init__(
            nn.Conv2d(1, 32, 3, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.Hardtanh(),
            nn.Conv2d(32, 64, 3, padding=1, bias=False),
            nn.MaxPool2d(2),
            nn.BatchNorm2d(64),
            nn.Hardtanh(),
            nn.Conv2d(64, 32, 3, padding=1, bias=False),
            nn.MaxPool2d(2),
            nn.BatchNorm2d(32),
            nn.Hardtanh(),
            nn.Flatten(),
            nn.Linear(128, 10, bias=False),
            nn.BatchNorm1d(10),
        )


def fit(model, data, generator, epochs, config=None, lr=2e-3):
    """Train ``model``, compressed if ``config`` says so."""
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    compressor = engine.create_compressor(model, config, optimizer) if config else None
    if compressor is not None:
        compressor.compress()
    for epoch in range(epochs):
        if compressor is not None:
            compressor.update_epoch(epoch)
        train_epoch(model, data, optimizer, generator)
        scheduler.step()
    return model


def qat(bits):
    entry = {**LAYERS, "quant_types": ["weight", "input"], "quant_bits": bits}
    return {"compressor": "qat", "config_list": [entry]}


CASES = {
    "level 90 %, ends kept, 15 epochs": (
        15,
        {"compressor": "level", "config_list": [{**LAYERS, "sparsity": 0.9}, ENDS]},
        2e-3,
    ),
    "AGP 90 %, ends kept, 15 epochs": (
        15,
        {
            "compressor": "agp",
            "config_list": [{**LAYERS, "final_sparsity": 0.9, "end_epoch": 10}, ENDS],
        },
        2e-3,
    ),
    "QAT 8 bit, 5 epochs": (5, qat(8), 3e-4),
    "QAT 4 bit, 5 epochs": (5, qat(4), 3e-4),
    "DoReFa w1 a2, ends float, 15 epochs": (
        15,
        {
            "compressor": "dorefa",
            "config_list": [
                {
                    **LAYERS,
                    "quant_types": ["weight", "input"],
                    "quant_bits": {"weight": 1, "input": 2},
                },
                ENDS,
            ],
        },
        2e-3,
    ),
}
BNN = {
    "compressor": "bnn",
    "config_list": [
        {**LAYERS, "quant_types": ["weight"], "quant_bits": 1},
        {"op_types": ["Hardtanh"], "quant_types": ["output"], "quant_bits": 1},
    ],
}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    scores = Scores()
    train_set, test_set = load()
    for seed in range(options.seeds):
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(seed)
        dense = fit(DigitsNet(), train_set, generator, 15)
        scores.note("float32, 15 epochs", accuracy(dense, test_set))
        for name, (epochs, config, lr) in CASES.items():
            model = fit(copy.deepcopy(dense), train_set, generator, epochs, config, lr)
            scores.note(name, accuracy(model, test_set))
        model = fit(BinaryDigitsNet(), train_set, generator, 20, BNN, 1e-2)
        scores.note("BNN w1 a1, 20 epochs", accuracy(model, test_set))
    scores.show()


if __name__ == "__main__":
    main()
