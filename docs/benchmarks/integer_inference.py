"""Integer inference: exported ONNX files in ONNX Runtime, against float32 and other exporters.

    python docs/benchmarks/integer_inference.py [--rounds 15] [--path FOLDER]

ResNet-18 for CIFAR: CPU time of one call on one thread, variants in turn; size of the file;
operators of the graph that ONNX Runtime has optimized; the largest difference of outputs from the
fake-quantized model. FOLDER is where torchao, brevitas (with dependencies 2.0.1, unfoldNd and
onnxoptimizer) and NNI are, if they are to be measured: pip install --no-deps --target FOLDER NAME.
"""

import argparse
import collections
import copy
import functools
import os
import tempfile
import warnings

import onnx
import onnxruntime
import torch
from installed import Peers, add_path
from integer_peers import (
    brevitas_file,
    brevitas_graph,
    eager,
    kernels,
    nni_backend,
    quantize_static,
    torch_ao_converted,
    torch_ao_prepared,
    torchao_inductor,
)
from interleaved import compare, show
from networks import ResNet18

import engine
from engine.export.onnx_file import export_onnx

COUNTED = ("Conv", "FusedConv", "QLinearConv", "Add", "QLinearAdd", "Gemm", "QGemm", "MatMul")
SHAPE = [1, 3, 32, 32]


def session(path):
    """Return what runs a file on one thread, and the operators it runs."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.optimized_model_filepath = f"{path}.optimized"
    own = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
    graph = onnx.load(options.optimized_model_filepath).graph
    (entry,) = own.get_inputs()
    return lambda x: own.run(None, {entry.name: x})[0], collections.Counter(
        node.op_type for node in graph.node
    )


def engine_file(model, path, batches, name, weights="per_channel_symmetric", whole=True, **own):
    """Quantize a copy of ``model``, write it, and return the fake-quantized copy."""
    model = copy.deepcopy(model)
    entry = {"op_types": ["Conv2d", "Linear"], "quant_types": ["weight", "input"], "quant_bits": 8}
    entry["quant_scheme"] = {"weight": weights, "input": "per_tensor_affine"}
    quantizer = engine.create_compressor(model, {"compressor": name, "config_list": [entry], **own})
    quantizer.compress()
    if name == "ptq":
        quantizer.calibrate(batches)
    else:
        for batch in batches:
            model.train()(batch)
    quantizer.export_model(
        f"{path}.safetensors",
        onnx_path=path,
        input_shape=SHAPE,
        batches=batches if whole else None,
    )
    return model.eval()


def engine_files(model, folder, batches):
    """Return {row: (file, fake-quantized model)}."""
    made = {}
    for row, file, name, options in (
        ("engine, ptq", "ptq", "ptq", {}),
        ("engine, qat, norms folded", "qat", "qat", {"fold_batch_norm": "fused"}),
        ("engine, qat, affine weights", "affine", "qat", {"weights": "per_tensor_affine"}),
        ("engine, ptq without batches", "part", "ptq", {"whole": False}),
    ):
        path = f"{folder}/{file}.onnx"
        made[row] = (path, engine_file(model, path, batches, name, **options))
    return made


def peers_files(model, folder, batches, float_path, peers):
    """Return {row: (file, fake-quantized model or None)} of other packages for ONNX Runtime."""

    def static():
        path = f"{folder}/static.onnx"
        quantize_static(float_path, path, batches)
        return path, None

    def brevitas():
        path = f"{folder}/brevitas.onnx"
        quantized = brevitas_graph(model, batches)
        brevitas_file(quantized, path, batches[0])
        return path, quantized

    found = {
        "onnxruntime quantize_static": peers.attempt("onnxruntime quantize_static", static),
        "brevitas QCDQ": peers.attempt("brevitas QCDQ", brevitas),
    }
    return {row: pair for row, pair in found.items() if pair is not None}


def torch_ao_row(model, folder, batches, whole):
    """Return torch.ao's int8 model; print its kernels and its size over ``whole`` bytes."""
    converted = torch_ao_converted(torch_ao_prepared(model, batches))
    torch.save(converted.state_dict(), f"{folder}/torch_ao.pth")
    share = os.path.getsize(f"{folder}/torch_ao.pth") / whole
    print(f"torch.ao FX: file {share:.3f} of float32, {kernels(converted)}")
    return converted


def difference(name, output, expected):
    print(f"  difference from {name} {(output - expected).abs().max():.4f}")


@torch.no_grad()
def resnet(folder, rounds, peers):
    torch.manual_seed(0)
    model = ResNet18()
    batches = [torch.randn(16, *SHAPE[1:]) for _ in range(4)]
    for batch in batches * 3:
        model.train()(batch)  # so that norms have statistics
    model.eval()
    float_path = f"{folder}/float.onnx"
    export_onnx(model, float_path, SHAPE)
    with torch.enable_grad():
        files = engine_files(model, folder, batches)
    files.update(peers_files(model, folder, batches, float_path, peers))
    runs = {"float32": session(float_path)[0]}
    x = torch.randn(8, *SHAPE[1:])
    reference = torch.from_numpy(runs["float32"](x.numpy()))
    print(f"largest output of float32 {reference.abs().max():.3f}")
    size = os.path.getsize(float_path)
    for name, (path, fake) in files.items():
        runs[name], operators = session(path)
        found = {key: operators[key] for key in COUNTED if operators[key]}
        print(f"{name}: file {os.path.getsize(path) / size:.3f} of float32, {found}")
        output = torch.from_numpy(runs[name](x.numpy()))
        difference("float32", output, reference)
        if fake is not None:
            own = fake(x)
            difference("the fake-quantized model", output, getattr(own, "value", own))
    converted = peers.attempt("torch.ao FX", torch_ao_row, model, folder, batches, size)
    if converted is not None:
        runs["torch.ao FX"] = eager(converted)
        difference("float32", converted(x), reference)
    peers.attempt("NNI 3.0", nni_backend)
    for count in (8, 1):
        value = torch.randn(count, *SHAPE[1:])
        variants = dict(runs)
        name = "torchao PT2E, inductor"
        compiled = peers.attempt(name, torchao_inductor, model, batches, value)
        if compiled is not None:
            variants[name] = compiled
        variants["torch eager float32"] = eager(model)
        calls = {name: functools.partial(run, value.numpy()) for name, run in variants.items()}
        show(f"ResNet-18 for CIFAR, batch {count}", compare(calls, rounds, repeat=8 // count))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=15)
    add_path(parser)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        resnet(folder, options.rounds, Peers(options.path))


if __name__ == "__main__":
    main()
