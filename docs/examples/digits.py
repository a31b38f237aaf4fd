"""Train a CNN on handwritten digits, prune it to 90 % with AGP, quantize it to 8 bits with QAT.

The engine's part is marked; the rest is an ordinary training script.

    python docs/examples/digits.py [--seed 0] [--epochs 15] [--out FOLDER]
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch
from digits_net import DigitsNet, accuracy, load, train_epoch

import engine

PRUNING = {
    "compressor": "agp",
    "pruning_algorithm": "level",
    "config_list": [
        {"op_types": ["default"], "initial_sparsity": 0.0, "final_sparsity": 0.9, "end_epoch": 10},
        {"op_names": ["conv1", "fc2"], "exclude": True},
    ],
}
QUANTIZATION = {
    "compressor": "qat",
    "config_list": [
        {"op_types": ["Conv2d", "Linear"], "quant_types": ["weight", "input"], "quant_bits": 8}
    ],
}


def train(model, data, optimizer, epochs, generator, title, compressor=None):
    """Train for some epochs; a progress line on a terminal, one line in a pipe."""
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for epoch in range(epochs):
        if compressor is not None:
            compressor.update_epoch(epoch)
        train_epoch(model, data, optimizer, generator)
        scheduler.step()
        if sys.stderr.isatty():
            print(f"\r{title}: epoch {epoch + 1}/{epochs}", end="", file=sys.stderr, flush=True)
    if sys.stderr.isatty():
        print(file=sys.stderr)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=15, help="of each of the three trainings")
    parser.add_argument("--out", type=Path, help="where the exported files go")
    options = parser.parse_args()
    started = time.perf_counter()
    torch.manual_seed(options.seed)
    generator = torch.Generator().manual_seed(options.seed)
    train_set, test_set = load()
    model = DigitsNet()

    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    train(model, train_set, optimizer, options.epochs, generator, "float32")
    dense = accuracy(model, test_set)

    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    pruner = engine.create_compressor(model, PRUNING, optimizer)  # <- the engine
    model = pruner.compress()
    train(model, train_set, optimizer, options.epochs, generator, "AGP 90 %", pruner)
    pruned = accuracy(model, test_set)

    optimizer = torch.optim.Adam(model.parameters(), lr=3e-4)
    quantizer = engine.create_compressor(model, QUANTIZATION, optimizer)  # <- the engine
    model = quantizer.compress()
    train(model, train_set, optimizer, options.epochs, generator, "QAT 8 bit")
    quantized = accuracy(model, test_set)

    print(engine.layer_table(model, pruner, quantizer))
    print()
    print(f"accuracy on 450 test images: float32 {dense:.1f} %, pruned {pruned:.1f} %, ", end="")
    print(f"pruned and quantized {quantized:.1f} %")

    out = options.out or Path(tempfile.mkdtemp(prefix="digits-"))
    out.mkdir(parents=True, exist_ok=True)
    quantizer.export_model(out / "digits.pth", out / "digits.json")  # <- the engine
    torch.save(DigitsNet().state_dict(), out / "float32.pth")
    small, large = ((out / name).stat().st_size for name in ("digits.pth", "float32.pth"))
    print(f"{out / 'digits.pth'}: {small:,} bytes, float32: {large:,} bytes")

    fresh = engine.load_quantized(DigitsNet(), out / "digits.pth")
    print(f"loaded again, weights quantized: {accuracy(fresh, test_set):.1f} %")
    print(f"{time.perf_counter() - started:.0f} seconds")


if __name__ == "__main__":
    main()
