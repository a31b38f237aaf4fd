"""Files that leave the engine: masks, state_dicts, packed weights, ONNX."""

from engine.export.compressed import export_pruned, export_quantized, load_quantized
from engine.export.mask_files import apply_masks, load_masks, masks_of
from engine.export.packed import PackedWeight, pack, unpack
from engine.files import PathLike

__all__ = [
    "PackedWeight",
    "PathLike",
    "apply_masks",
    "export_pruned",
    "export_quantized",
    "load_masks",
    "load_quantized",
    "masks_of",
    "pack",
    "unpack",
]
