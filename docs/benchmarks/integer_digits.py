"""The ONNX files of quantized networks on handwritten digits, five seeds, 450 test images.

    python docs/benchmarks/integer_digits.py [--seeds 5]

Accuracy of each file in ONNX Runtime and of the fake-quantized model that it is made from, weights
and inputs of every layer quantized; and how far their logits are apart.
"""

import argparse
import collections
import copy
import statistics
import tempfile
import warnings

import torch
from digits_accuracy import LAYERS, fit
from digits_net import DigitsNet, accuracy, load
from integer_inference import session

import engine


def digits(folder, seeds):
    scores, steps = collections.defaultdict(list), collections.defaultdict(list)
    train_set, test_set = load()
    images = list(train_set[0][:512].split(64))
    for seed in range(seeds):
        torch.manual_seed(seed)
        dense = fit(DigitsNet(), train_set, torch.Generator().manual_seed(seed), 15)
        scores["float32"].append(accuracy(dense, test_set))
        for name in ("ptq", "qat"):
            for bits in (8, 4):
                model = copy.deepcopy(dense)
                entry = {**LAYERS, "quant_types": ["weight", "input"], "quant_bits": bits}
                config = {"compressor": name, "config_list": [entry]}
                optimizer = None
                if name == "qat":
                    optimizer = torch.optim.Adam(model.parameters(), lr=3e-4)
                quantizer = engine.create_compressor(model, config, optimizer)
                quantizer.compress()
                if name == "ptq":
                    quantizer.calibrate(images)
                else:
                    train(model, optimizer, train_set, seed)
                path = f"{folder}/digits.onnx"
                quantizer.export_model(
                    f"{folder}/digits.pth",
                    onnx_path=path,
                    input_shape=[1, *test_set[0].shape[1:]],
                    batches=images,
                )
                own = accuracy(model, test_set)
                run, _ = session(path)
                logits = torch.from_numpy(run(test_set[0].numpy()))
                file = 100 * (logits.argmax(1) == test_set[1]).float().mean().item()
                with torch.no_grad():
                    expected = model(test_set[0])
                step = (expected.max() - expected.min()) / (2**bits - 1)
                steps[f"{name} {bits} bit"] += ((logits - expected).abs() / step).tolist()
                scores[f"{name} {bits} bit, fake-quantized"].append(own)
                scores[f"{name} {bits} bit, the file"].append(file)
    for name, values in scores.items():
        print(f"{name:32}  {statistics.mean(values):6.2f}  {min(values):6.2f}  {max(values):6.2f}")
    for name, values in steps.items():
        apart = torch.tensor(values)
        print(
            f"{name}: logits differ by at most {apart.max():.2f} steps of their range in as many "
            f"bits, {100 * (apart <= 1).float().mean():.3f} % of them by no more than one"
        )


def train(model, optimizer, data, seed, epochs=5):
    inputs, labels = data
    generator = torch.Generator().manual_seed(1000 + seed)
    model.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(inputs), generator=generator).split(64):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(inputs[rows]), labels[rows]).backward()
            optimizer.step()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        digits(folder, options.seeds)


if __name__ == "__main__":
    main()
