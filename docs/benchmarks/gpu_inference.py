"""What compressed weights are worth on a card: 2:4 sparse and int8 products against dense ones."""

import torch
from torch import nn

import engine


def pruned_2_4(size, device):
    """Return a dense float16 linear layer, and one that keeps 2 of each 4 weights in a row."""
    dense = nn.Linear(size, size, bias=False).to(device, torch.float16)
    sparse = nn.Linear(size, size, bias=False).to(device, torch.float16)
    with torch.no_grad():
        magnitude = dense.weight.float().abs().view(size, -1, 4)
        kept = magnitude.argsort(dim=-1).argsort(dim=-1) >= 2
        weight = dense.weight * kept.view(size, size)
    packed = torch.sparse.to_sparse_semi_structured(weight)
    sparse.weight = nn.Parameter(packed, requires_grad=False)
    return dense, sparse, weight


def semi_structured(device, quick):
    """Return the products to time, the first of them dense."""
    size, batch = (128, 64) if quick else (4096, 4096)
    dense, sparse, weight = pruned_2_4(size, device)
    x = torch.randn(batch, size, device=device, dtype=torch.float16)
    with torch.inference_mode():
        torch.testing.assert_close(sparse(x), x @ weight.t(), rtol=1e-2, atol=1e-2)
    return {
        f"dense float16, {batch} x {size} x {size}": _inference(dense, x),
        "2:4 sparse float16": _inference(sparse, x),
    }


def integer_products(device, quick):
    """Return products to time: float32, float16, and the integers of a layer that qat trained."""
    size, batch = (128, 64) if quick else (4096, 4096)
    layer = nn.Sequential(nn.Linear(size, size, bias=False)).to(device)
    entry = {"op_types": ["Linear"], "quant_types": ["weight", "input"], "quant_bits": 8,
             "quant_scheme": "per_tensor_symmetric"}  # fmt: skip
    quantizer = engine.create_compressor(layer, {"compressor": "qat", "config_list": [entry]})
    quantizer.compress()
    x = torch.randn(batch, size, device=device)
    layer(x)
    wanted = layer.eval()(x).detach()
    wrapper = quantizer.get_modules_wrapper()[0]
    weight, inputs = (
        quantizer.affine_form(wrapper, getattr(engine.QuantType, kind))
        for kind in ("WEIGHT", "INPUT")
    )
    rows = _integers(wrapper.weight.detach(), weight).t()  # column-major, as the kernel wants it
    integers = _integers(x, inputs)
    scale = (weight.scale * inputs.scale).to(device)
    torch.testing.assert_close(torch._int_mm(integers, rows) * scale, wanted, rtol=1e-3, atol=1e-3)
    plain = quantizer.unwrap()
    half = nn.Linear(size, size, bias=False).to(device, torch.float16)
    return {
        f"dense float16, {batch} x {size} x {size}": _inference(half, x.half()),
        "dense float32": _inference(plain, x),
        "int8, product alone": lambda: torch._int_mm(integers, rows),
        "int8, input rounded and output scaled": lambda: (
            torch._int_mm(_integers(x, inputs), rows) * scale
        ),
    }


def onnx_provider():
    """Return whether ONNX Runtime can run the exported integers on a card, in words."""
    try:
        import onnxruntime
    except ImportError:
        return "ONNX Runtime is not installed: an exported file was not run"
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return (
            f"ONNX Runtime {onnxruntime.__version__} has no CUDA provider here (the package "
            "onnxruntime-gpu has): an exported file was not run on the card"
        )
    return "ONNX Runtime has its CUDA provider; it was not timed here"


def _integers(tensor, form):
    """Return ``tensor`` as the integers of a symmetric grid."""
    scaled = (tensor / form.scale.to(tensor.device)).round()
    return scaled.clamp(form.qmin, form.qmax).to(torch.int8)


def _inference(model, x):
    def run():
        with torch.inference_mode():
            model(x)

    return run
