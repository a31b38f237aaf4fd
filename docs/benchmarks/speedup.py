"""What speedup gives and what it costs: latency, file size, time to trace and rewrite.

    python docs/benchmarks/speedup.py [--path DIR]

``--path`` is a folder with torchvision and torch-pruning, for the comparison of times; without
them only the engine's own figures are printed.
"""

import argparse
import copy
import io
import statistics
import sys
import time
import warnings

import torch
from networks import ResNet18
from torch import nn

from engine.algorithms import L1FilterPruner
from engine.analysis import compare_latency
from engine.speedup import speedup

PEER_MODELS = ("resnet18", "resnet50", "mobilenet_v2", "densenet121", "vgg11_bn", "convnext_tiny")


def file_size(model):
    stream = io.BytesIO()
    torch.save(model.state_dict(), stream)
    return stream.tell()


def latency_and_size():
    torch.manual_seed(0)
    masked = ResNet18().eval()
    x = torch.randn(8, 3, 32, 32)
    entries = [{"op_types": ["Conv2d"], "sparsity": 0.5}]
    pruner = L1FilterPruner(masked, entries, dependency_aware=True, dummy_input=x)
    pruner.compress()
    small = copy.deepcopy(masked)
    speedup(small, x)
    off = (small(x) - masked(x)).abs().max() / masked(x).abs().max()
    times = compare_latency(masked, small, x, runs=40)
    print("ResNet-18 for CIFAR, half of the channels, batch 8")
    print(f"  masked / smaller, latency: {1 / times.ratio:.2f}")
    print(f"  smaller / masked, file: {file_size(small) / file_size(masked):.3f}")
    print(f"  largest relative difference (float32): {off:.1e}\n")


def chain(layers):
    torch.manual_seed(0)
    model = nn.Sequential(
        *(m for _ in range(layers) for m in (nn.Linear(32, 32), nn.ReLU())), nn.Linear(32, 2)
    )
    with torch.no_grad():
        for module in list(model)[:-1:2]:
            module.weight[:16] = 0
            module.bias[:16] = 0
    return model.eval()


def linearity():
    print("chain of linear layers of which half the features go, CPU seconds")
    x = torch.randn(2, 32)
    speedup(chain(10), x)
    for layers in (125, 250, 500, 1000, 2000):
        model = chain(layers)
        started = time.process_time()
        speedup(model, x)
        seconds = time.process_time() - started
        print(f"  {layers:5} layers  {seconds:6.2f}  {seconds / layers * 1e3:6.2f} ms a layer")
    print()


def against_peer(rounds):
    import torch_pruning
    import torchvision

    print("trace, choose half of the channels, rewrite: CPU time against Torch-Pruning's")
    x = torch.randn(1, 3, 224, 224)
    for name in PEER_MODELS:
        ratios = []
        for round_ in range(rounds + 1):
            taken = {}
            for who in ("engine", "peer") if round_ % 2 else ("peer", "engine"):
                torch.manual_seed(0)
                model = torchvision.models.get_model(name, weights=None).eval()
                started = time.process_time()
                (ours if who == "engine" else peers)(model, x, torch_pruning)
                taken[who] = time.process_time() - started
            if round_:  # the first round warms up
                ratios.append(taken["engine"] / taken["peer"])
        print(f"  {name:16} {statistics.median(ratios):6.2f}   ({taken['engine']:.2f} s)")


def ours(model, x, _):
    entries = [{"op_types": ["Conv2d"], "sparsity": 0.5}]
    pruner = L1FilterPruner(model, entries, dependency_aware=True, dummy_input=x)
    pruner.compress()
    pruner.apply_speedup()


def peers(model, x, torch_pruning):
    last = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == 1000]
    pruner = torch_pruning.pruner.MagnitudePruner(
        model,
        x,
        importance=torch_pruning.importance.MagnitudeImportance(p=1),
        pruning_ratio=0.5,
        ignored_layers=last,
    )
    pruner.step()
    with torch.no_grad():
        model(x)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--path")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    latency_and_size()
    linearity()
    if options.path:
        sys.path.insert(0, options.path)
        for name in ("nms", "qnms"):
            torch.library.define(
                f"torchvision::{name}",
                "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
            )
        against_peer(options.rounds)


if __name__ == "__main__":
    main()
