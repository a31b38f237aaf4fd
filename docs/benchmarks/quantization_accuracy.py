"""Accuracy of quantized networks on handwritten digits: five seeds, 450 test images.

    python docs/benchmarks/quantization_accuracy.py [--seeds 5] [--path FOLDER]

Each seed trains one float32 network for 15 epochs; everything else starts from a copy of it:
without training (PTQ, calibrated with training images), or with 5 more epochs. Weights and inputs
of every layer are quantized, the first and the last too. Other packages are those of
digits_peers.py; FOLDER is where they are.
"""

import argparse
import copy
import warnings

import torch
from digits_accuracy import LAYERS, fit
from digits_net import DigitsNet, accuracy, load
from digits_peers import CALIBRATED, EPOCHS, TRAINED, order
from installed import Peers, add_path
from scores import Scores

import engine

BITS = (8, 4, 3, 2)
PEERS_BITS = (8, 4, 2)
CHANNELS = {"weight": "per_channel_symmetric", "input": "per_tensor_affine"}


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


def trained(model, data, seed, bits, name, lr, scheme=None):
    """Return a copy of ``model`` that is trained on quantized."""
    config = {"compressor": name, "config_list": entry(bits, scheme)}
    return fit(copy.deepcopy(model), data, order(seed), EPOCHS, config, lr)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=5)
    add_path(parser)
    options = parser.parse_args()
    peers = Peers(options.path)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    scores = Scores()
    train_set, test_set = load()
    images = list(train_set[0][:512].split(64))

    def note(name, model):
        if model is not None:
            scores.note(name, accuracy(model, test_set))

    for seed in range(options.seeds):
        torch.manual_seed(seed)
        dense = fit(DigitsNet(), train_set, torch.Generator().manual_seed(seed), 15)
        note("float32", dense)
        for bits in BITS:
            note(f"PTQ {bits} bit", calibrated(dense, images, bits, "per_tensor_affine"))
            best = {"observer": "mse", "bias_correction": True}
            note(f"PTQ {bits} bit, channels, mse, bias", calibrated(dense, images, bits, **best))
        rates = {bits: 3e-4 if bits > 2 else 1e-3 for bits in BITS}
        for bits in BITS:
            given = (dense, train_set, seed, bits, "qat", rates[bits])
            note(f"QAT {bits} bit", trained(*given))
            note(f"QAT {bits} bit, channels", trained(*given, CHANNELS))
        for bits in PEERS_BITS:
            note(f"LSQ {bits} bit", trained(dense, train_set, seed, bits, "lsq", rates[bits]))
            note(f"LSQ+ {bits} bit", trained(dense, train_set, seed, bits, "lsq_plus", rates[bits]))
        for bits in PEERS_BITS:
            for name, run in CALIBRATED.items():
                found = peers.attempt(name, run, dense, images, bits)
                note(f"{name} PTQ {bits} bit", found)
            for name, run in TRAINED.items():
                given = (dense, train_set, images, seed, bits, rates[bits])
                note(f"{name} {bits} bit", peers.attempt(name, run, *given))
    scores.show()


if __name__ == "__main__":
    main()
