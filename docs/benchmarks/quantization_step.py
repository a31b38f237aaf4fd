"""What quantization-aware training adds to a training step: this engine and others, interleaved.

    python docs/benchmarks/quantization_step.py [--rounds 9] [--network resnet|mlp] [--path FOLDER]

8 bits for weights and inputs of every convolution and linear layer, one scale each, unless a row
says otherwise. A step is zero_grad, forward, backward and SGD with momentum, in CPU time. Others
are measured where they are installed, in FOLDER or beside torch: torch.ao, torchao, brevitas, NNI.
"""

import argparse
import copy
import warnings

import quantized_peers
import torch
import torch.nn.functional as F
from installed import Peers, add_path
from interleaved import compare, show
from networks import ResNet18, mlp
from torch import nn

import engine

KINDS = nn.Conv2d | nn.Linear


def engine_variant(*kinds, name="qat", scheme=None, **arguments):
    entry = {"op_types": ["default"], "quant_types": list(kinds), "quant_bits": 8}
    if scheme:
        entry["quant_scheme"] = scheme

    def prepare(model, optimizer, x):
        config = {"compressor": name, "config_list": [entry], **arguments}
        engine.create_compressor(model, config, optimizer).compress()
        return model

    return prepare


def straight_through(model, optimizer, x):
    """Plain operators with a detached difference, as they are written first."""

    def rounded(tensor, low, high):
        scale = (high - low).clamp(min=1e-8) / 255
        zero = (-low / scale).round()
        values = ((tensor / scale + zero).round().clamp(0, 255) - zero) * scale
        return tensor + (values - tensor).detach()

    for layer in [m for m in model.modules() if isinstance(m, KINDS)]:
        layer.register_buffer("range", torch.tensor([0.0, 1.0]))

        def forward(x, layer=layer):
            with torch.no_grad():
                layer.range.lerp_(torch.stack(x.aminmax()), 0.01)
            x = rounded(x, *layer.range)
            weight = rounded(layer.weight, *layer.weight.detach().aminmax())
            if isinstance(layer, nn.Linear):
                return F.linear(x, weight, layer.bias)
            return F.conv2d(x, weight, layer.bias, layer.stride, layer.padding)

        layer.forward = forward
    return model


def torch_ao(fused):
    def prepare(model, optimizer, x):
        from torch.ao import quantization as tq

        kinds = tq.FusedMovingAvgObsFakeQuantize if fused else tq.FakeQuantize
        activation = kinds.with_args(
            observer=tq.MovingAverageMinMaxObserver, quant_min=0, quant_max=255
        )
        weight = kinds.with_args(
            observer=tq.MovingAverageMinMaxObserver,
            quant_min=-128,
            quant_max=127,
            dtype=torch.qint8,
            qscheme=torch.per_tensor_symmetric,
        )
        model.qconfig = tq.QConfig(activation=activation, weight=weight)
        return tq.prepare_qat(model.train(), inplace=True)

    return prepare


def torchao(model, optimizer, x):
    prepared = quantized_peers.torchao_pt2e(model, x, any_batch=False)
    prepared.train()  # returns nothing
    return prepared


def brevitas(model, optimizer, x):
    return quantized_peers.brevitas(model, per_channel=False, unsigned=False)


def nni(model, optimizer, x):
    import nni as package
    from nni.compression.quantization import QATQuantizer
    from nni.compression.utils import TorchEvaluator

    traced = package.trace(torch.optim.SGD)(model.parameters(), lr=1e-3, momentum=0.9)
    entry = {
        "op_types": ["Conv2d", "Linear"],
        "target_names": ["weight", "_input_"],
        "quant_dtype": "int8",
        "quant_scheme": "affine",
        "granularity": "default",
    }
    evaluator = TorchEvaluator(lambda *a, **k: None, traced, lambda batch, model: None)
    types = {type(layer).__name__ for layer in model.modules()}
    entry["op_types"] = [kind for kind in entry["op_types"] if kind in types]
    quantizer = QATQuantizer(model, [entry], evaluator)
    quantizer.compress(None, 1)
    return model


def step_of(model, x, y, prepare):
    """Return a function that does one training step of a copy of ``model``."""
    model = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    prepared = prepare(model, optimizer, x)
    if {*map(id, prepared.parameters())} != {*map(id, model.parameters())}:
        optimizer = torch.optim.SGD(prepared.parameters(), lr=1e-3, momentum=0.9)

    def step():
        optimizer.zero_grad()
        F.cross_entropy(prepared(x), y).backward()
        optimizer.step()

    return step


OURS = {
    "engine qat": engine_variant("weight", "input"),
    "engine qat, outputs": engine_variant("weight", "output"),
    "engine qat, weights per channel": engine_variant(
        "weight", "input", scheme="per_channel_symmetric"
    ),
    "engine lsq": engine_variant("weight", "input", name="lsq"),
}
FOLDED = {
    "engine qat, norms folded": engine_variant("weight", "input", fold_batch_norm="fused"),
    "engine qat, folded, unfused": engine_variant("weight", "input", fold_batch_norm="unfused"),
}
OTHERS = {
    "straight-through operators": straight_through,
    "torch.ao FakeQuantize": torch_ao(False),
    "torch.ao fused observer": torch_ao(True),
    "torchao PT2E (folds norms)": torchao,
    "brevitas": brevitas,
    "NNI 3.0": nni,
}


def measured(title, model, x, y, prepares, rounds, peers, **options):
    steps = {"float32": step_of(model, x, y, lambda m, o, x: m)}

    def ready(prepare):
        step = step_of(model, x, y, prepare)
        step()
        return step

    for name, prepare in prepares.items():
        step = peers.attempt(name, ready, prepare) if name in OTHERS else ready(prepare)
        if step is not None:
            steps[name] = step
    show(title, compare(steps, rounds, **options))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--network", choices=["resnet", "mlp", "both"], default="both")
    add_path(parser)
    options = parser.parse_args()
    peers = Peers(options.path)
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    torch.set_num_threads(1)
    if options.network != "mlp":
        x, y = torch.randn(32, 3, 32, 32), torch.randint(0, 10, (32,))
        prepares = {**OURS, **FOLDED, **OTHERS}
        title = "ResNet-18 for CIFAR, batch 32"
        measured(title, ResNet18(), x, y, prepares, options.rounds, peers, warmup=1)
    if options.network != "resnet":
        x, y = torch.randn(64, 64), torch.randint(0, 64, (64,))
        title = "64-64-64 MLP, batch 64"
        prepares = {**OURS, **OTHERS}
        measured(title, mlp(), x, y, prepares, options.rounds * 4, peers, repeat=50)


if __name__ == "__main__":
    main()
