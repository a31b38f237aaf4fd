"""What a pruner adds to a training step: this engine, torch.nn.utils.prune, NNI 2.0 if installed.

    python docs/benchmarks/training_step.py [--rounds 15]

A step is zero_grad, forward, backward and SGD with momentum. Limit: masks must be multiplied into
the weights, one read of mask and weight and one write per step ("in-place multiply").
"""

import argparse
import copy

import torch
import torch.nn.functional as F
from interleaved import compare, show
from networks import ResNet18, mlp
from torch.nn.utils import prune

from engine.algorithms import LevelPruner

CONFIG = [{"sparsity": 0.5, "op_types": ["default"]}]


def step_of(model, x, y, prepare):
    """Return a function that does one training step of a copy of ``model``."""
    model = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    after = prepare(model, optimizer)

    def step():
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        if after is not None:
            after()

    return step


def engine_level(model, optimizer):
    LevelPruner(model, CONFIG, optimizer).compress()


def torch_prune(model, optimizer):
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            prune.l1_unstructured(module, "weight", 0.5)
    # The optimizer must hold the parameters that prune has made.
    optimizer.param_groups.clear()
    optimizer.add_param_group({"params": list(model.parameters())})


def nni_level(model, optimizer):
    from nni.algorithms.compression.pytorch.pruning import LevelPruner as NNILevel

    NNILevel(model, CONFIG, optimizer).compress()


def floor(model, optimizer):
    kinds = torch.nn.Conv2d | torch.nn.Linear
    weights = [m.weight for m in model.modules() if isinstance(m, kinds)]
    masks = [(torch.rand_like(w) > 0.5).to(w.dtype) for w in weights]

    @torch.no_grad()
    def after():
        torch._foreach_mul_(weights, masks)

    return after


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    prepares = {
        "bare step": lambda m, o: None,
        "in-place multiply": floor,
        "engine level": engine_level,
        "torch.nn.utils.prune": torch_prune,
    }
    try:
        import nni.algorithms.compression.pytorch.pruning  # noqa: F401

        prepares["NNI level"] = nni_level
    except ImportError:
        print("NNI is not installed, it is left out")
    x, y = torch.randn(32, 3, 32, 32), torch.randint(0, 10, (32,))
    steps = {name: step_of(ResNet18(), x, y, p) for name, p in prepares.items()}
    show("ResNet-18 for CIFAR, batch 32", compare(steps, options.rounds))
    x, y = torch.randn(64, 64), torch.randint(0, 64, (64,))
    steps = {name: step_of(mlp(), x, y, p) for name, p in prepares.items()}
    show("64-64-64 MLP, batch 64", compare(steps, options.rounds * 4, repeat=100))


if __name__ == "__main__":
    main()
