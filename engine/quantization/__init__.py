"""The number formats: one function per scheme, shared by all quantizers."""

from engine.quantization.affine import (
    affine_parameters,
    dequantize,
    fake_quantize,
    quantize,
    wide,
)
from engine.quantization.grid import (
    follow_range,
    keep_grid,
    quantize_over_extremes,
    quantize_over_range,
)
from engine.quantization.uniform import quantize_unit, straight_through

__all__ = [
    "affine_parameters",
    "dequantize",
    "fake_quantize",
    "follow_range",
    "keep_grid",
    "quantize",
    "quantize_over_extremes",
    "quantize_over_range",
    "quantize_unit",
    "straight_through",
    "wide",
]
