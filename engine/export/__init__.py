"""Files that leave the engine: masks, state_dicts, packed weights, ranges, ONNX."""

from engine.export.calibration_file import load_calibration
from engine.export.compressed import export_pruned, export_quantized
from engine.export.job_export import export_smaller, placed
from engine.export.onnx_file import OnnxOptions
from engine.export.packed import PackedWeight, pack, unpack
from engine.export.packed_file import load_quantized
from engine.files import PathLike
from engine.pruning.mask_files import apply_masks, load_masks, masks_of

__all__ = [
    "OnnxOptions",
    "PackedWeight",
    "PathLike",
    "apply_masks",
    "export_pruned",
    "export_quantized",
    "export_smaller",
    "load_calibration",
    "load_masks",
    "load_quantized",
    "masks_of",
    "pack",
    "placed",
    "unpack",
]
