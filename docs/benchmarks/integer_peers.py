"""Integer models on the CPU by ONNX Runtime's own tool, torch.ao, torchao and brevitas.

Each takes a float32 model in evaluation mode and batches that ranges are taken from. NNI 3.0 is
asked, too: it has no integers on the CPU, and the reason is what its import says.
"""

import collections
import copy

import torch
from torch import nn


def quantize_static(float_path, path, batches):
    """Write what ONNX Runtime's own tool makes of the float32 file."""
    import onnxruntime
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


def torch_ao_prepared(model, batches, training=False):
    """Return torch.ao's FX graph with its defaults for x86, to be trained or with ranges seen."""
    from torch.ao import quantization as tq
    from torch.ao.quantization import quantize_fx

    model = copy.deepcopy(model)
    if training:
        mapping = tq.get_default_qat_qconfig_mapping("x86")
        return quantize_fx.prepare_qat_fx(model.train(), mapping, (batches[0],))
    mapping = tq.get_default_qconfig_mapping("x86")
    prepared = quantize_fx.prepare_fx(model.eval(), mapping, (batches[0],))
    with torch.no_grad():
        for batch in batches:
            prepared(batch)
    return prepared


def torch_ao_converted(prepared, integers=True):
    """Return the graph on torch's own int8 kernels, or the same grids in floating point."""
    from torch.ao.quantization import quantize_fx

    convert = quantize_fx.convert_fx if integers else quantize_fx.convert_to_reference_fx
    return convert(copy.deepcopy(prepared).eval())


def kernels(converted):
    """Return how often each integer module and operator of torch is in a converted graph."""
    found = collections.Counter(
        type(module).__name__
        for module in converted.modules()
        if "quantized" in type(module).__module__
    )
    found.update(
        str(node.target)
        for node in converted.graph.nodes
        if node.op == "call_function" and "quantized." in str(node.target)
    )
    return {name: count for name, count in found.items() if "Packed" not in name}


def torchao_inductor(model, batches, x):
    """Return a function of an array: torchao's PT2E route for batches of the size of ``x``."""
    from quantized_peers import torchao_pt2e
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

    prepared = torchao_pt2e(model, x, training=False, any_batch=False)
    for batch in batches:
        prepared(batch[: len(x)])
    run = inductor(convert_pt2e(prepared))
    run(x.numpy())
    return run


def inductor(converted):
    """Return a function of an array that compiles a graph of PT2E for each shape that it meets."""
    import torch._inductor.config as settings

    settings.freezing = True
    # Not dynamic: inductor's integer convolution then expects strides that it does not get.
    return eager(torch.compile(converted, dynamic=False))


def eager(model):
    """Return a function of an array that calls ``model``."""

    def run(value):
        with torch.no_grad():
            return model(torch.from_numpy(value)).numpy()

    return run


def brevitas_graph(model, batches):
    """Return brevitas's quantization of the whole graph, norms merged, ranges from ``batches``.

    Its defaults but for the weights' scales: one for each output channel.
    """
    from brevitas import quant
    from brevitas.graph import quantize as graphs
    from quantized_peers import brevitas_calibrated

    layers = dict(graphs.COMPUTE_LAYER_MAP)
    for kind in (nn.Conv2d, nn.Linear):
        other, chosen = layers[kind]
        layers[kind] = (other, {**chosen, "weight_quant": quant.Int8WeightPerChannelFloat})
    graph = graphs.preprocess_for_quantize(copy.deepcopy(model).eval())
    graph = graphs.quantize(graph, compute_layer_map=layers)
    # In a module of its own: the exporter takes the attribute "graph" for TorchScript's.
    return brevitas_calibrated(nn.Sequential(graph), batches)


def brevitas_file(quantized, path, x):
    """Write the ONNX file with quantized weights and biases that brevitas makes."""
    from brevitas.export import export_onnx_qcdq

    quantized.eval()
    # With dynamo, biases stay float and weights float32: nothing is smaller or faster.
    export_onnx_qcdq(
        quantized,
        x,
        export_path=path,
        dynamo=False,
        input_names=["x"],
        dynamic_axes={"x": {0: "batch"}},
    )


def nni_backend():
    """Import what NNI 3.0 runs integers with: TensorRT, on a graphics card, and nothing else."""
    from nni.compression.quantization_speedup import ModelSpeedupTensorRT

    return ModelSpeedupTensorRT
