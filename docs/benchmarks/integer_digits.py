"""Integer models of quantized networks on handwritten digits, five seeds, 450 test images.

    python docs/benchmarks/integer_digits.py [--seeds 5] [--path FOLDER]

Accuracy of each ONNX file in ONNX Runtime and of the fake-quantized model that it is made from,
weights and inputs of every layer quantized; and how far their logits are apart. Other packages'
integers, where they are installed in FOLDER: torch.ao's on torch's kernels, torchao's compiled by
inductor, brevitas's in ONNX Runtime, of the same networks in 8 bits, trained alike.
"""

import argparse
import copy
import tempfile
import warnings

import torch
from digits_accuracy import LAYERS, fit
from digits_net import DigitsNet, accuracy, load
from digits_peers import torchao_calibrated
from installed import Peers, add_path
from integer_inference import session
from integer_peers import (
    brevitas_file,
    brevitas_graph,
    eager,
    inductor,
    torch_ao_converted,
    torch_ao_prepared,
)
from quantized_peers import torchao_pt2e
from scores import Scores

import engine


class Comparison:
    """Scores of fake-quantized and integer models, and differences of their logits."""

    def __init__(self, test_set):
        self.images, self.labels = test_set
        self.scores, self.apart = Scores(), {}

    @torch.no_grad()
    def note(self, name, model, run, bits):
        """Compare ``model`` with ``run``, a function of an array, in steps of the logits' range."""
        model.eval()
        expected = model(self.images)
        expected = getattr(expected, "value", expected)
        logits = torch.from_numpy(run(self.images.numpy()))
        step = (expected.max() - expected.min()) / (2**bits - 1)
        self.apart.setdefault(name, []).append((logits - expected).abs() / step)
        self.scores.note(f"{name}, fake-quantized", self.share(expected))
        self.scores.note(f"{name}, integers", self.share(logits))

    def share(self, logits):
        """Return the percentage of images that have the right label."""
        return 100 * (logits.argmax(1) == self.labels).float().mean().item()

    def show(self):
        self.scores.show()
        for name, tensors in self.apart.items():
            apart = torch.cat(tensors)
            print(
                f"{name}: logits differ by at most {apart.max():.2f} steps of their range in as "
                f"many bits, {100 * (apart <= 1).float().mean():.3f} % of them by no more than one"
            )


def train(model, data, seed, optimizer=None, epochs=5):
    """Train ``model``; every quantized network here is trained alike."""
    inputs, labels = data
    generator = torch.Generator().manual_seed(1000 + seed)
    optimizer = optimizer or torch.optim.Adam(model.parameters(), lr=3e-4)
    model.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(inputs), generator=generator).split(64):
            optimizer.zero_grad()
            logits = model(inputs[rows])
            logits = getattr(logits, "value", logits)
            torch.nn.functional.cross_entropy(logits, labels[rows]).backward()
            optimizer.step()
    return model


def engine_pair(name, bits, dense, data, images, seed, path):
    """Return the fake-quantized network and what runs its file."""
    model = copy.deepcopy(dense)
    entry = {**LAYERS, "quant_types": ["weight", "input"], "quant_bits": bits}
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-4) if name == "qat" else None
    config = {"compressor": name, "config_list": [entry]}
    quantizer = engine.create_compressor(model, config, optimizer)
    quantizer.compress()
    if name == "ptq":
        quantizer.calibrate(images)
    else:
        train(model, data, seed, optimizer)
    shape = [1, *images[0].shape[1:]]
    quantizer.export_model(f"{path}.pth", onnx_path=path, input_shape=shape, batches=images)
    return model, session(path)[0]


def torch_ao_pair(training, dense, data, images, seed, path):
    prepared = torch_ao_prepared(dense, images, training)
    if not training:  # nothing is fake-quantized before it is converted
        return torch_ao_converted(prepared, integers=False), eager(torch_ao_converted(prepared))
    from torch.ao.quantization import disable_observer

    train(prepared, data, seed).apply(disable_observer)
    return prepared, eager(torch_ao_converted(prepared))


def torchao_pair(training, dense, data, images, seed, path):
    from torchao.quantization import pt2e
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

    if not training:
        converted = torchao_calibrated(dense, images, 8)
        return converted, inductor(converted)
    prepared = train(torchao_pt2e(dense, images[0]), data, seed).apply(pt2e.disable_observer)
    prepared.eval()
    return prepared, inductor(convert_pt2e(copy.deepcopy(prepared)))


def brevitas_pair(training, dense, data, images, seed, path):
    quantized = brevitas_graph(dense, images)
    if training:
        train(quantized, data, seed)
    brevitas_file(quantized, path, images[0])
    return quantized, session(path)[0]


PEERS = {
    "torch.ao FX": torch_ao_pair,
    "torchao PT2E, inductor": torchao_pair,
    "brevitas QCDQ": brevitas_pair,
}


def digits(path, seeds, peers):
    train_set, test_set = load()
    compared = Comparison(test_set)
    images = list(train_set[0][:512].split(64))
    for seed in range(seeds):
        torch.manual_seed(seed)
        dense = fit(DigitsNet(), train_set, torch.Generator().manual_seed(seed), 15)
        compared.scores.note("float32", accuracy(dense, test_set))
        given = (dense, train_set, images, seed, path)
        for name in ("ptq", "qat"):
            for bits in (8, 4):
                pair = engine_pair(name, bits, *given)
                compared.note(f"{name} {bits} bit", *pair, bits)
        for name, make in PEERS.items():
            for training in (False, True):
                pair = peers.attempt(name, make, training, *given)
                if pair is not None:  # what is compiled may still fail when it is called
                    row = f"{name}, {'qat' if training else 'ptq'} 8 bit"
                    peers.attempt(name, compared.note, row, *pair, 8)
    compared.show()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=5)
    add_path(parser)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        digits(f"{folder}/digits.onnx", options.seeds, Peers(options.path))


if __name__ == "__main__":
    main()
