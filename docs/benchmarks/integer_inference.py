"""Integer inference: exported ONNX files in ONNX Runtime, against float32 and other exporters.

    python docs/benchmarks/integer_inference.py [--rounds 15] [--path FOLDER]

ResNet-18 for CIFAR: CPU time of one session call on one thread, variants in turn; size of the file;
operators of the graph that ONNX Runtime has optimized; the largest difference of outputs from the
fake-quantized model. FOLDER is where torchao is, if it is to be measured (pip install --no-deps
--target FOLDER torchao).
"""

import argparse
import collections
import copy
import functools
import os
import sys
import tempfile
import warnings

import onnx
import onnxruntime
import torch
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


def quantize_static(float_path, path, batches):
    """Write what ONNX Runtime's own tool makes of the float32 file."""
    from onnxruntime import quantization as tool
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(tool.CalibrationDataReader):
        def __init__(self):
            name = onnxruntime.InferenceSession(float_path).get_inputs()[0].name
            self.left = iter([{name: batch.numpy()} for batch in batches])

        def get_next(self):
            return next(self.left, None)

    quant_pre_process(float_path, f"{path}.pre", skip_symbolic_shape=True)
    tool.quantize_static(
        f"{path}.pre",
        path,
        Reader(),
        quant_format=tool.QuantFormat.QDQ,
        per_channel=True,
        activation_type=tool.QuantType.QUInt8,
        weight_type=tool.QuantType.QInt8,
    )


def torchao_inductor(model, batches, x):
    """Return torchao's PT2E route, compiled by inductor."""
    import torch._inductor.config as inductor
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(torch.export.export(model, (x,)).module(), quantizer)
    for batch in batches:
        prepared(batch[: len(x)])
    inductor.freezing = True
    compiled = torch.compile(convert_pt2e(prepared))

    def run(value):
        with torch.no_grad():
            return compiled(torch.from_numpy(value)).numpy()

    run(x.numpy())
    return run


def resnet(folder, rounds):
    torch.manual_seed(0)
    model = ResNet18()
    batches = [torch.randn(16, *SHAPE[1:]) for _ in range(4)]
    for batch in batches * 3:
        model.train()(batch)  # so that norms have statistics
    model.eval()
    float_path = f"{folder}/float.onnx"
    export_onnx(model, float_path, SHAPE)
    fake = {
        "engine, ptq": engine_file(model, f"{folder}/ptq.onnx", batches, "ptq"),
        "engine, qat, norms folded": engine_file(
            model, f"{folder}/qat.onnx", batches, "qat", fold_batch_norm="fused"
        ),
        "engine, qat, affine weights": engine_file(
            model, f"{folder}/affine.onnx", batches, "qat", "per_tensor_affine"
        ),
        "engine, ptq without batches": engine_file(
            model, f"{folder}/part.onnx", batches, "ptq", whole=False
        ),
    }
    paths = dict(
        zip(fake, (f"{folder}/{n}.onnx" for n in ("ptq", "qat", "affine", "part")), strict=True)
    )
    try:
        quantize_static(float_path, f"{folder}/static.onnx", batches)
        paths["onnxruntime quantize_static"] = f"{folder}/static.onnx"
    except Exception as error:  # whatever somebody else's package raises
        print(f"left out: quantize_static: {type(error).__name__}: {error}")
    float32 = session(float_path)[0]
    runs = {"float32": float32}
    x = torch.randn(8, *SHAPE[1:])
    size = os.path.getsize(float_path)
    for name, path in paths.items():
        runs[name], operators = session(path)
        found = {key: operators[key] for key in COUNTED if operators[key]}
        print(f"{name}: file {os.path.getsize(path) / size:.3f} of float32, {found}")
        reference = torch.from_numpy(runs["float32"](x.numpy()))
        print(f"  largest output of float32 {reference.abs().max():.3f}", end="")
        output = torch.from_numpy(runs[name](x.numpy()))
        print(f", difference from it {(output - reference).abs().max():.4f}", end="")
        if name in fake:
            with torch.no_grad():
                own = fake[name](x)
            print(f", from the fake-quantized model {(output - own).abs().max():.4f}", end="")
        print()
    for count in (8, 1):
        value = torch.randn(count, *SHAPE[1:])
        variants = dict(runs)
        try:
            variants["torchao PT2E, inductor"] = torchao_inductor(model, batches, value)
        except Exception as error:  # whatever somebody else's package raises
            print(f"left out: torchao: {type(error).__name__}: {str(error).splitlines()[:1]}")
        with torch.no_grad():
            variants["torch eager float32"] = lambda v: model(torch.from_numpy(v))
            array = value.numpy()
            calls = {name: functools.partial(run, array) for name, run in variants.items()}
            show(f"ResNet-18 for CIFAR, batch {count}", compare(calls, rounds, repeat=8 // count))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--path", help="a folder with torchao")
    options = parser.parse_args()
    if options.path:
        sys.path.append(options.path)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        resnet(folder, options.rounds)


if __name__ == "__main__":
    main()
