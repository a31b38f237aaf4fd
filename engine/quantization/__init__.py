"""The number formats: one function per scheme, shared by all quantizers."""

from engine.quantization.affine import (
    affine_parameters,
    dequantize,
    fake_quantize,
    quantize,
    wide,
)
from engine.quantization.delay import Delay
from engine.quantization.form import AffineForm
from engine.quantization.grid import Grid
from engine.quantization.grid_search import best_grid
from engine.quantization.layer_grids import average_ranges, begun, keep_grid, update_waits
from engine.quantization.post_training import PostTrainingQuantizer
from engine.quantization.scheme import Scheme, scheme_of
from engine.quantization.uniform import quantize_clipped, quantize_unit, straight_through

__all__ = [
    "AffineForm",
    "Delay",
    "Grid",
    "PostTrainingQuantizer",
    "Scheme",
    "affine_parameters",
    "average_ranges",
    "begun",
    "best_grid",
    "dequantize",
    "fake_quantize",
    "keep_grid",
    "quantize",
    "quantize_clipped",
    "quantize_unit",
    "scheme_of",
    "straight_through",
    "update_waits",
    "wide",
]
