"""The number formats: one function per scheme, shared by all quantizers."""

from engine.quantization.affine import affine_parameters, dequantize, fake_quantize, quantize
from engine.quantization.uniform import quantize_unit, round_straight_through

__all__ = [
    "affine_parameters",
    "dequantize",
    "fake_quantize",
    "quantize",
    "quantize_unit",
    "round_straight_through",
]
