"""Layers of a pruned network fitted to the dense one's outputs, without labels or training.

    python docs/benchmarks/reconstruction.py [--seeds 5]

The digits network, pruned at once; percent of 450 test images: as it is masked, fitted on the
training images, and both after one epoch of training. Then AMC, which judges untrained candidates
by the loss on 300 held-out images, with and without fitting them; no network is trained after that.
"""

import argparse
import copy
import statistics

import torch
from automatic_pruners import pretrained
from digits_net import accuracy, train_epoch
from torch.nn import functional as F

from engine.algorithms import AMCPruner, L1FilterPruner, LevelPruner
from engine.pruning import Reconstruction

CASES = [
    ("l1_filter", L1FilterPruner, 0.5),
    ("l1_filter", L1FilterPruner, 0.7),
    ("l1_filter", L1FilterPruner, 0.85),
    ("level", LevelPruner, 0.8),
    ("level", LevelPruner, 0.9),
    ("level", LevelPruner, 0.95),
]
ENTRIES = [
    {"op_types": ["Conv2d", "Linear"], "sparsity": 0.0},
    {"op_names": ["fc2"], "exclude": True},
]


def pruned(model, pruner_class, sparsity, train, test, *, fitted, seed):
    """Return the accuracy of a pruned copy, before and after an epoch of training."""
    model = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    entries = [{**ENTRIES[0], "sparsity": sparsity}, ENTRIES[1]]
    reconstruction = Reconstruction(model, train[0].split(128)) if fitted else None
    bound = {"dependency_aware": True, "dummy_input": test[0][:2]}
    given = bound if pruner_class is L1FilterPruner else {}
    pruner_class(model, entries, optimizer, **given).compress()
    if reconstruction is not None:
        reconstruction.apply()
    at_once = accuracy(model, test)
    train_epoch(model, train, optimizer, torch.Generator().manual_seed(seed))
    return at_once, accuracy(model, test)


def searched(model, sparsity, train, held_out, test, *, fitted, seed):
    """Return the accuracy of what AMC finds without any training."""
    model = copy.deepcopy(model)

    @torch.no_grad()
    def evaluator(model):
        return -F.cross_entropy(model.eval()(held_out[0]), held_out[1]).item()

    AMCPruner(
        model,
        [{"op_types": ["Conv2d", "Linear"], "sparsity": sparsity}],
        evaluator=evaluator,
        dummy_input=test[0][:2],
        reconstruction_batches=train[0].split(128) if fitted else None,
        base_algo="l1_filter",
        budget="parameters",
        train_episode=100,
        warmup=40,
        random_seed=seed,
        verbose=False,
    ).compress()
    return accuracy(model, test)


def spread(values):
    """Return mean and standard deviation as text."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):6.2f} +- {deviation:5.2f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    seeds = range(parser.parse_args().seeds)
    torch.set_num_threads(1)
    networks = [pretrained(seed) for seed in seeds]
    print(f"dense: {spread([accuracy(model, test) for model, _, _, test in networks])}")
    print("\n                   masked           fitted           trained          both")
    for name, pruner_class, sparsity in CASES:
        columns = []
        for seed, (model, train, _, test) in zip(seeds, networks, strict=True):
            plain, fitted = (
                pruned(model, pruner_class, sparsity, train, test, fitted=fitted, seed=seed)
                for fitted in (False, True)
            )
            columns.append((plain[0], fitted[0], plain[1], fitted[1]))
        cells = "  ".join(spread(column) for column in zip(*columns, strict=True))
        print(f"{name:9}  {sparsity:4.0%}  {cells}", flush=True)
    print("\namc, untrained     masked           fitted")
    for sparsity in (0.5, 0.7):
        cells = [
            spread(
                [
                    searched(model, sparsity, train, held_out, test, fitted=fitted, seed=seed)
                    for seed, (model, train, held_out, test) in zip(seeds, networks, strict=True)
                ]
            )
            for fitted in (False, True)
        ]
        print(f"           {sparsity:4.0%}  {'  '.join(cells)}", flush=True)


if __name__ == "__main__":
    main()
