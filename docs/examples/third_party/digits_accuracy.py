"""What the two example packages reach on handwritten digits: five seeds, 450 test images.

    pip install ./movement_pruning ./pact
    python digits_accuracy.py [--seeds 5]

Each seed trains one float32 network for 15 epochs; everything else starts from a copy of it and
trains for 15 more. The first and the last layer are not pruned, and are quantized to 8 bits.
"""

import argparse
import copy
import statistics
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from digits_net import DigitsNet, accuracy, load, train_epoch

import engine

LAYERS = {"op_types": ["Conv2d", "Linear"]}
ENDS = {"op_names": ["conv1", "fc2"]}
EPOCHS = 15


def pruned(algorithm, sparsity):
    """Return the configuration of ``algorithm`` inside agp."""
    entry = {**LAYERS, "final_sparsity": sparsity, "end_epoch": 10}
    return {
        "compressor": "agp",
        "pruning_algorithm": algorithm,
        "config_list": [entry, {**ENDS, "exclude": True}],
    }


def quantized(algorithm, bits, **arguments):
    """Return the configuration of ``algorithm`` for weights and inputs."""
    entry = {**LAYERS, "quant_types": ["weight", "input"], "quant_bits": bits}
    return {
        "compressor": algorithm,
        "config_list": [entry, {**entry, "op_types": ["default"], **ENDS, "quant_bits": 8}],
        **arguments,
    }


CASES = {
    "agp + level, 90 %": pruned("level", 0.9),
    "agp + movement, 90 %": pruned("movement", 0.9),
    "agp + level, 97 %": pruned("level", 0.97),
    "agp + movement, 97 %": pruned("movement", 0.97),
    "pact, 4 bits": quantized("pact", 4, initial_alpha=4),
    "pact, 2 bits": quantized("pact", 2, initial_alpha=4),
}


def fit(model, data, generator, config=None):
    """Train ``model``, compressed if ``config`` says so."""
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    compressor = engine.create_compressor(model, config, optimizer) if config else None
    if compressor is not None:
        compressor.compress()
    for epoch in range(EPOCHS):
        if compressor is not None:
            compressor.update_epoch(epoch)
        train_epoch(model, data, optimizer, generator)
        scheduler.step()
    return model


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    train_set, test_set = load()
    scores = {}
    for seed in range(options.seeds):
        torch.manual_seed(seed)
        dense = fit(DigitsNet(), train_set, torch.Generator().manual_seed(seed))
        scores.setdefault("float32", []).append(accuracy(dense, test_set))
        for name, config in CASES.items():
            generator = torch.Generator().manual_seed(1000 + seed)
            model = fit(copy.deepcopy(dense), train_set, generator, config)
            scores.setdefault(name, []).append(accuracy(model, test_set))
    width = max(map(len, scores))
    print(f"{'':{width}}   mean    min    max")
    for name, values in scores.items():
        mean = statistics.mean(values)
        print(f"{name:{width}}  {mean:6.2f}  {min(values):5.2f}  {max(values):5.2f}")


if __name__ == "__main__":
    main()
