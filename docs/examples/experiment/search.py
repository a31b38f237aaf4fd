#!/usr/bin/env python
"""The script of an automatic experiment: how small may a trained digits network become?

engine run docs/examples/experiment/search.yaml

Every trial starts from the same trained network, which the first one trains and keeps. The score is
the percentage of parameters that is gone, less 20 for each point of accuracy that is lost beyond
half a point.
"""

import copy
import os
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from digits_net import DigitsNet, accuracy, load, train_epoch

import engine

DENSE_EPOCHS, EPOCHS = 10, 8
ALLOWED, PRICE = 0.5, 20.0


def fit(model, data, optimizer, epochs, seed):
    """Train with a rate that falls to zero: what comes out depends less on the last batches."""
    generator = torch.Generator().manual_seed(seed)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        train_epoch(model, data, optimizer, generator)
        scheduler.step()


def dense_network(data, seed):
    """Return the trained network; its weights are kept beside the experiment."""
    path = Path(f"dense-{seed}.pth")
    torch.manual_seed(seed)
    model = DigitsNet()
    if path.exists():
        model.load_state_dict(torch.load(path, weights_only=True))
        return model
    fit(model, data, torch.optim.Adam(model.parameters(), lr=2e-3), DENSE_EPOCHS, seed)
    partial = Path(f"{path}.{os.getpid()}")
    torch.save(model.state_dict(), partial)
    partial.replace(path)  # another trial may read it at any moment
    return model


@engine.experiment_args
def main(config, seed=0):
    """Prune, train for some epochs, make the network smaller; return the score."""
    torch.set_num_threads(1)
    seed = int(os.environ.get("DIGITS_SEED", seed))
    train_set, test_set = load(seed)
    model = dense_network(train_set, seed)
    dense = copy.deepcopy(model)
    before = accuracy(dense, test_set)

    torch.manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    pruner = engine.create_compressor(model, config, optimizer=optimizer)
    model = pruner.compress()
    fit(model, train_set, optimizer, EPOCHS, seed)
    example = torch.zeros(1, 1, 8, 8)
    pruner.export_model("model.pth", speedup=True, dummy_input=example)

    after = accuracy(model, test_set)
    report = engine.report_model(
        model,
        before=dense,
        dummy_input=example,
        measures={"accuracy": (before, after)},
        latency_runs=10,
    )
    size = report["totals"]["params"]
    gone = 100 * (1 - size["after"] / size["before"])
    return [gone - PRICE * max(0.0, before - ALLOWED - after), after, size["after"]]


if __name__ == "__main__":
    main()
