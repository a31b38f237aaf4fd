"""Accuracy of quantized networks on handwritten digits: five seeds, 450 test images.

    python docs/benchmarks/quantization_accuracy.py [--seeds 5]

Each seed trains one float32 network for 15 epochs; everything else starts from a copy of it:
without training (PTQ, calibrated with training images), or with 5 more epochs. Weights and inputs
of every layer are quantized, the first and the last too.
"""

import argparse
import copy
import statistics

import torch
from digits_accuracy import LAYERS, fit
from digits_net import DigitsNet, accuracy, load

import engine

BITS = (8, 4, 3, 2)
EPOCHS = 5


def entry(bits, scheme=None):
    """Return a config_list for weights and inputs of all layers."""
    settings = {**LAYERS, "quant_types": ["weight", "input"], "quant_bits": bits}
    return [settings if scheme is None else {**settings, "quant_scheme": scheme}]


def calibrated(model, images, bits, scheme=None, **options):
    """Return a copy of ``model`` that is quantized without training."""
    model = copy.deepcopy(model)
    config = {"compressor": "ptq", "config_list": entry(bits, scheme), **options}
    quantizer = engine.create_compressor(model, config)
    quantizer.compress()
    quantizer.calibrate(images)
    return model


def trained(model, data, seed, bits, name, lr, **options):
    """Return a copy of ``model`` that is trained on quantized."""
    generator = torch.Generator().manual_seed(1000 + seed)
    config = {"compressor": name, "config_list": entry(bits), **options}
    return fit(copy.deepcopy(model), data, generator, EPOCHS, config, lr)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    scores = {}
    train_set, test_set = load()
    images = list(train_set[0][:512].split(64))

    def note(name, model):
        scores.setdefault(name, []).append(accuracy(model, test_set))

    for seed in range(options.seeds):
        torch.manual_seed(seed)
        dense = fit(DigitsNet(), train_set, torch.Generator().manual_seed(seed), 15)
        note("float32", dense)
        for bits in BITS:
            note(f"PTQ {bits} bit", calibrated(dense, images, bits, "per_tensor_affine"))
            best = {"observer": "mse", "bias_correction": True}
            note(f"PTQ {bits} bit, channels, mse, bias", calibrated(dense, images, bits, **best))
        for bits in BITS:
            rate = 3e-4 if bits > 2 else 1e-3
            note(f"QAT {bits} bit", trained(dense, train_set, seed, bits, "qat", rate))
        for bits in (4, 2):
            rate = 3e-4 if bits > 2 else 1e-3
            note(f"LSQ {bits} bit", trained(dense, train_set, seed, bits, "lsq", rate))
            note(f"LSQ+ {bits} bit", trained(dense, train_set, seed, bits, "lsq_plus", rate))
    width = max(map(len, scores))
    print(f"{'':{width}}   mean    min    max")
    for name, values in scores.items():
        mean = statistics.mean(values)
        print(f"{name:{width}}  {mean:5.2f}  {min(values):5.2f}  {max(values):5.2f}")


if __name__ == "__main__":
    main()
