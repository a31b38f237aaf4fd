"""All that is to be known of a card, in one run: ratios to the bare step, waits, memory, kernels.

    python docs/benchmarks/gpu.py [--device cuda] [--minutes 8] [--quick]

Variants run in turn in one process, from an idle card to an idle card; ratios are medians of
ratios of the same round. ``--device cpu --quick`` tries the script without a card.
"""

import argparse
import functools
import time
import warnings

import gpu_inference
import torch
from gpu_clock import compare, is_ours, peak, settle, waits
from gpu_steps import OTHERS, VARIANTS, Step, networks
from installed import Peers, add_path
from interleaved import show
from mask_calculation import network
from torch import nn

from engine.algorithms import FPGMPruner, LevelPruner

#: Parts of the time: training steps (per network and precision), masks, inference.
_SHARES = {"steps": 0.06, "masks": 0.1, "inference": 0.1}


def describe(device):
    print(f"torch {torch.__version__}, CUDA {torch.version.cuda}")
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        print(f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    else:
        print("NO CARD: figures of this run are of the CPU and say nothing of one")
    print()


def training(device, options, peers):
    dtypes = [torch.float32, torch.bfloat16]
    if device.type == "cuda":
        dtypes.append(torch.float16)
    for title, model, x, y in networks(options.quick):
        for dtype in dtypes[: 1 if options.quick else None]:
            kind, steps = str(dtype).removeprefix("torch."), {}
            for name, prepare in VARIANTS.items():
                make = functools.partial(Step, model, x, y, device, prepare, dtype)
                before = allocated(device)
                where = f"{name} ({title}, {kind})"
                step = peers.attempt(where, make) if name in OTHERS else make()
                if step is not None:
                    step.held = allocated(device) - before
                    steps[name] = step
            share = options.seconds * _SHARES["steps"]
            show(f"Training step, {title}, {kind}", compare(steps, device, share))
            if dtype != torch.bfloat16:
                waiting(steps, device)
            memory(steps, device)


def waiting(steps, device):
    print("  waits for the card in one step, by place:")
    for name, step in steps.items():
        found = waits(step, device)
        if found is None:
            print("    not counted: no card\n")
            return
        ours = {p: n for p, n in found.items() if is_ours(p)}
        print(f"    {name:22} {sum(found.values())} in all, {sum(ours.values())} of the engine")
        for place, count in found.items():
            print(f"      {count} x {place}")
    print()


def memory(steps, device):
    """Print the peak of each step with what its own model, optimizer and masks hold."""
    peaks = {name: peak(step, device) for name, step in steps.items()}
    if None in peaks.values():
        return
    resting = allocated(device)
    most = {name: steps[name].held + bytes_ - resting for name, bytes_ in peaks.items()}
    print("  peak memory, MiB, and its ratio to the bare step:")
    for name, bytes_ in most.items():
        print(f"    {name:22} {bytes_ / 2**20:9.1f} {bytes_ / most['bare step']:7.3f}")
    print()


def allocated(device):
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def masks(device, options):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 16, 3)) if options.quick else network()
    model.to(device)
    weights = [module.weight.detach() for module in model]
    print(f"{sum(w.numel() for w in weights):,} weights")

    def kthvalue():
        for weight in weights:
            threshold = weight.abs().flatten().kthvalue(weight.numel() // 2).values
            _ = weight.abs() > threshold

    def topk():
        for weight in weights:
            weight.abs().flatten().topk(weight.numel() // 2, largest=False, sorted=False)

    def cdist():
        for weight in weights:
            rows = weight.flatten(1)
            torch.cdist(rows, rows).sum(1)

    def ours(cls):
        pruner = cls(model, [{"sparsity": 0.5, "op_types": ["default"]}])

        @torch.no_grad()
        def run():
            for wrapper in pruner.get_modules_wrapper():
                pruner.calc_mask(wrapper=wrapper, sparsity=0.5)

        return run

    share = options.seconds * _SHARES["masks"] / 2
    level = {"kthvalue and comparison": kthvalue, "topk": topk, "level": ours(LevelPruner)}
    show("Masks of level", compare(level, device, share, repeat=1))
    fpgm = {"cdist": cdist, "fpgm": ours(FPGMPruner)}
    show("Masks of fpgm", compare(fpgm, device, share, repeat=1))


def inference(device, options, peers):
    share = options.seconds * _SHARES["inference"] / 2
    for title, make in (
        ("2:4 sparse inference", gpu_inference.semi_structured),
        ("int8 inference, one linear layer", gpu_inference.integer_products),
    ):
        variants = peers.attempt(title, make, device, options.quick)
        if variants is not None:
            show(title, compare(variants, device, share))
    print(gpu_inference.onnx_provider())


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=8, help="how long all of it may take")
    parser.add_argument("--quick", action="store_true", help="small networks, a few rounds")
    add_path(parser)
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("torch.cuda is not available; --device cpu --quick tries the script")
    # Warming up, waits and memory take the rest.
    options.seconds = 0 if options.quick else options.minutes * 60 * 0.7
    if device.type == "cpu":
        torch.set_num_threads(1)
    started = time.perf_counter()
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    peers = Peers(options.path)
    describe(device)
    training(device, options, peers)
    masks(device, options)
    inference(device, options, peers)
    settle(device)
    print(f"{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
