"""How long masks take for 25 million weights, against a pass of what must be computed.

    python docs/benchmarks/mask_calculation.py [--rounds 5]

level: one ``torch.kthvalue`` over each layer's absolute values; fpgm: one ``torch.cdist`` of each
layer.
"""

import argparse

import torch
from interleaved import compare, show
from torch import nn

from engine.algorithms import FPGMPruner, LevelPruner

SPARSITY = 0.5


def network():
    """Return layers of the shapes of a ResNet-50's, 25.5 million weights."""
    layers, inputs = [nn.Conv2d(3, 64, 7, bias=False)], 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            layers += [
                nn.Conv2d(inputs, width, 1, bias=False),
                nn.Conv2d(width, width, 3, bias=False),
                nn.Conv2d(width, 4 * width, 1, bias=False),
            ]
            if block == 0:
                layers.append(nn.Conv2d(inputs, 4 * width, 1, bias=False))
            inputs = 4 * width
    return nn.Sequential(*layers, nn.Linear(2048, 1000))


def masks_of(pruner_class, model):
    """Return a function that computes the masks of all layers anew."""
    pruner = pruner_class(model, [{"sparsity": SPARSITY, "op_types": ["default"]}])

    def run():
        with torch.no_grad():
            for wrapper in pruner.get_modules_wrapper():
                pruner.calc_mask(wrapper=wrapper, sparsity=SPARSITY)

    return run


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.manual_seed(0)
    model = network()
    weights = [module.weight.detach() for module in model]
    print(f"{sum(w.numel() for w in weights):,} weights\n")

    def kthvalue():
        for weight in weights:
            weight.abs().flatten().kthvalue(weight.numel() // 2)

    def cdist():
        for weight in weights:
            torch.cdist(weight.flatten(1), weight.flatten(1))

    show(
        "level",
        compare(
            {"torch.kthvalue": kthvalue, "engine level": masks_of(LevelPruner, model)},
            options.rounds,
            warmup=1,
        ),
    )
    show(
        "fpgm",
        compare(
            {"torch.cdist": cdist, "engine fpgm": masks_of(FPGMPruner, model)},
            options.rounds,
            warmup=1,
        ),
    )


if __name__ == "__main__":
    main()
