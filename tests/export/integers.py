"""Quantized models for the tests of integer exports, and what ONNX Runtime makes of the files."""

from collections import Counter

import torch
import torch.nn.functional as F
from torch import nn

import engine
from engine.export.integer_program import integer_program


class Residual(nn.Module):
    """For (n, 3, 6, 6): a residual block whose sum and activations are no modules."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        x = F.relu(self.norm1(self.first(x)))
        x = F.relu(x + self.norm2(self.second(x)))
        return self.fc(x.mean((2, 3)))


def entry(bits=8, kinds=("weight", "input"), weights="per_channel_symmetric", **more):
    scheme = dict.fromkeys(kinds, "per_tensor_affine") | {"weight": weights}
    types = {"op_types": ["Conv1d", "Conv2d", "Linear"]}
    return {"quant_types": list(kinds), "quant_bits": bits, "quant_scheme": scheme, **types, **more}


def quantized(model, x, name="qat", **settings):
    """Return the quantizer of a model, in evaluation mode, that has seen ``x`` in training."""
    types = {type(layer).__name__ for layer in model.modules()}
    settings.setdefault("op_types", sorted({"Conv1d", "Conv2d", "Linear"} & types))
    own = {key: settings.pop(key) for key in ("fold_batch_norm",) if key in settings}
    if name.startswith("lsq"):  # one scheme for all types
        settings["quant_scheme"] = settings.get("weights", "per_channel_symmetric")
    config = {"compressor": name, "config_list": [entry(**settings)], **own}
    quantizer = engine.create_compressor(model, config)
    quantizer.compress()
    if name == "ptq":
        quantizer.calibrate([x])
    model.train()(x)
    model.eval()(x)
    return quantizer


def program_of(quantizer, x, batches=None):
    """Return what the exported program computes for ``x``, and where it uses integers."""
    exported = integer_program(quantizer, x, batches)
    return exported.program.module()(x), exported.placements


def run_file(path, x):
    """Return what ONNX Runtime computes for ``x``, and the operators that it runs."""
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.optimized_model_filepath = f"{path}.optimized"
    session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    graph = onnx.load(options.optimized_model_filepath).graph
    (result,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    return torch.from_numpy(result), Counter(node.op_type for node in graph.node)


def step_of_input(quantizer, name):
    """Return the step of the grid of a layer's input."""
    return next(w.input_scale.item() for w in quantizer.wrappers if w.name == name)
