"""What speedup gives and what it costs: latency, file size, time to trace and rewrite.

    python docs/benchmarks/speedup.py [--path DIR]

``--path`` is a folder with torchvision and torch-pruning, for the comparison of times; without
them only the engine's own figures are printed.
"""

import argparse
import contextlib
import copy
import gc
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

#: Where the peer's step ends within minutes, and its smaller model runs, but for vit_b_32's.
PEER_MODELS = (
    *("resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2", "mobilenet_v2"),
    *("mobilenet_v3_small", "mobilenet_v3_large", "mnasnet1_0", "efficientnet_b0", "squeezenet1_1"),
    *("googlenet", "regnet_y_400mf", "regnet_x_400mf", "densenet121", "vgg11_bn", "alexnet"),
    *("convnext_tiny", "vit_b_32"),
)


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


def against_peer(rounds, names):
    import torch_pruning
    import torchvision

    print("trace, choose half of the channels, rewrite: CPU time against Torch-Pruning's")
    print("  (medians of interleaved rounds; forward passes of the whole model)")
    x = torch.randn(1, 3, 224, 224)
    found = []
    for name in names:
        ratios, seconds = [], []
        for round_ in range(rounds + 1):
            taken, passes = {}, 0
            for who in ("engine", "peer") if round_ % 2 else ("peer", "engine"):
                torch.manual_seed(0)
                model = torchvision.models.get_model(name, weights=None).eval()
                gc.collect()
                started = time.process_time()
                if who == "engine":
                    passes = ours(model, x)
                else:
                    peers(model, x, torch_pruning)
                taken[who] = time.process_time() - started
            if round_:  # the first round warms up
                ratios.append(taken["engine"] / taken["peer"])
                seconds.append(taken["engine"])
        found.append(statistics.median(ratios))
        print(
            f"  {name:20} {found[-1]:6.2f}   {statistics.median(seconds):.2f} s   "
            f"{passes} forward passes",
            flush=True,
        )
    print(f"  {'median':20} {statistics.median(found):6.2f}")


def ours(model, x):
    """Return how often the model ran."""
    runs = []
    handle = model.register_forward_pre_hook(lambda *_: runs.append(None))
    linear = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    entries = [{"op_types": ["Conv2d"], "sparsity": 0.5}]
    if len(linear) > 1:
        entries.append({"op_names": linear[:-1], "sparsity": 0.5})
    pruner = L1FilterPruner(model, entries, dependency_aware=True, dummy_input=x)
    pruner.compress()
    pruner.apply_speedup()
    handle.remove()
    return len(runs)


def peers(model, x, torch_pruning):
    last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1:]
    pruner = torch_pruning.pruner.MagnitudePruner(
        model,
        x,
        importance=torch_pruning.importance.MagnitudeImportance(p=1),
        pruning_ratio=0.5,
        ignored_layers=last,
    )
    pruner.step()
    with torch.no_grad(), contextlib.suppress(RuntimeError):
        model(x)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--path")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=PEER_MODELS, help="models to compare on")
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
        against_peer(options.rounds, options.only)


if __name__ == "__main__":
    main()
