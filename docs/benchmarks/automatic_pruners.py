"""Each automatic pruner against uniform pruning at equal sparsity, on the digits network.

Whole filters by L1 norm, the budget in parameters of the smaller model. All searches judge by the
loss on 300 images that are held out of the training set; all networks are fine-tuned alike
afterwards, and tested on images that neither has seen. Repeat with

    python docs/benchmarks/automatic_pruners.py --seeds 5
"""

import argparse
import copy
import statistics
import sys
import time
from pathlib import Path

import torch
from torch.nn import functional as F

from engine.algorithms import (
    ADMMPruner,
    AMCPruner,
    AutoCompressPruner,
    NetAdaptPruner,
    SensitivityPruner,
    SimulatedAnnealingPruner,
)
from engine.automatic import AutomaticPruner

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from digits_net import DigitsNet, accuracy, load, train_epoch


class UniformPruner(AutomaticPruner):
    """The same sparsity for all layers: what searches are compared with."""

    def search(self):
        self.adopt(self.try_plan(self.fit(self.strongest, self.target), "uniform"))


METHODS = {
    "uniform": (UniformPruner, {}),
    "sensitivity": (SensitivityPruner, {"acc_drop_threshold": 0.1}),
    "net_adapt": (NetAdaptPruner, {}),
    "simulated_annealing": (SimulatedAnnealingPruner, {}),
    "admm": (ADMMPruner, {"num_iterations": 10, "training_epochs": 1, "rho": 0.01}),
    "auto_compress": (
        AutoCompressPruner,
        {"num_iterations": 2, "admm_num_iterations": 5, "admm_training_epochs": 1},
    ),
    "amc": (AMCPruner, {"train_episode": 150, "warmup": 50}),
}


def pretrained(seed, epochs=15):
    torch.manual_seed(seed)
    train, test = load(seed)
    held_out = (train[0][:300], train[1][:300])
    train = (train[0][300:], train[1][300:])
    model = DigitsNet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        train_epoch(model, train, optimizer, generator)
    return model, train, held_out, test


def compressed(name, model, data, sparsity, seed, epochs):
    """Return accuracy after fine-tuning, parameters that went, candidates and epochs in search."""
    train, held_out, test = data
    model = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    trained = 0

    def trainer(model, optimizer, epoch):
        nonlocal trained
        trained += 1
        train_epoch(model, train, optimizer, torch.Generator().manual_seed(1000 * seed + trained))

    @torch.no_grad()
    def evaluator(model):
        model.eval()
        return -F.cross_entropy(model(held_out[0]), held_out[1]).item()

    method, arguments = METHODS[name]
    given = {"evaluator": evaluator, "trainer": trainer, "dummy_input": test[0][:2]}
    entries = [{"op_types": ["Conv2d", "Linear"], "sparsity": sparsity}]
    own = {} if name == "admm" else {"budget": "parameters"}
    if name == "admm":  # it is given a sparsity for each layer: the uniform one
        uniform = UniformPruner(
            copy.deepcopy(model), entries, optimizer, **given, base_algo="l1_filter",
            budget="parameters",
        )  # fmt: skip
        uniform.verbose = False
        uniform.compress()
        entries = uniform.found_config_list()
    pruner = method(model, entries, optimizer, **given, base_algo="l1_filter", **own, **arguments)
    pruner.verbose = False
    pruner.compress()
    in_search, candidates = trained, max(0, len(pruner.trials) - 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for epoch in range(epochs):
        pruner.update_epoch(epoch)
        for group in optimizer.param_groups:
            group["lr"] = 0.05 * (1 - epoch / epochs)
        trainer(model, optimizer, epoch)
    before = sum(p.numel() for p in model.parameters())
    pruner.apply_speedup()
    removed = 1 - sum(p.numel() for p in model.parameters()) / before
    return accuracy(model, test), removed, candidates, in_search


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.7, 0.9])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    results = {}
    for seed in range(chosen.seeds):
        model, *data = pretrained(seed)
        dense = accuracy(model, data[2])
        for sparsity in chosen.sparsity:
            for name in chosen.methods:
                start = time.process_time()
                row = compressed(name, model, data, sparsity, seed, chosen.epochs)
                row = (*row, time.process_time() - start, dense)
                results.setdefault((sparsity, name), []).append(row)
                print(f"seed {seed}  {sparsity}  {name:<20} {row[0]:.2f}  {row[1]:.3f}", flush=True)
    print("\nsparsity  method                accuracy          removed  candidates  epochs")
    for (sparsity, name), rows in results.items():
        reached = [row[0] for row in rows]
        spread = statistics.stdev(reached) if len(reached) > 1 else 0.0
        mean = statistics.fmean(reached)
        print(
            f"{sparsity:<8}  {name:<20}  {mean:6.2f} +- {spread:4.2f}  "
            f"{statistics.fmean(r[1] for r in rows):8.3f}  "
            f"{statistics.fmean(r[2] for r in rows):10.0f}  "
            f"{statistics.fmean(r[3] for r in rows):6.0f}"
        )
    print(f"dense: {statistics.fmean(r[5] for r in next(iter(results.values()))):.2f}")


if __name__ == "__main__":
    main()
