"""Files that leave the engine: masks, state_dicts, packed weights, ranges, ONNX."""

from engine.export.calibration_file import load_calibration
from engine.export.compressed import (
    explained_by_integers,
    export_blocks,
    export_integers,
    export_pruned,
    export_quantized,
)
from engine.export.deploy import Exported, export_to
from engine.export.exporter import Exporter, Refused
from engine.export.folder_exporter import FolderExporter, Stated
from engine.export.job_export import export_smaller, placed
from engine.export.language_model import config_of, quietly, refused_model, refused_ties
from engine.export.onnx_file import OnnxOptions, export_onnx
from engine.export.onnx_linear import explained_by_inputs, refused_linear, write_onnx_with
from engine.export.onnx_reader import onnx_reader
from engine.export.packed import PackedWeight, pack, unpack
from engine.export.packed_file import load_quantized
from engine.export.safetensors_stream import write_safetensors
from engine.export.source import Source
from engine.export.source_layer import GridFacts, SourceLayer
from engine.export.torch_program import exported_program, load_program
from engine.files import PathLike
from engine.pruning.mask_files import apply_masks, load_masks, masks_of
from engine.quantization.placement import Placement

__all__ = [
    "Exported",
    "Exporter",
    "FolderExporter",
    "GridFacts",
    "OnnxOptions",
    "PackedWeight",
    "PathLike",
    "Placement",
    "Refused",
    "Source",
    "SourceLayer",
    "Stated",
    "apply_masks",
    "config_of",
    "explained_by_inputs",
    "explained_by_integers",
    "export_blocks",
    "export_integers",
    "export_onnx",
    "export_pruned",
    "export_quantized",
    "export_smaller",
    "export_to",
    "exported_program",
    "load_calibration",
    "load_masks",
    "load_program",
    "load_quantized",
    "masks_of",
    "onnx_reader",
    "pack",
    "placed",
    "quietly",
    "refused_linear",
    "refused_model",
    "refused_ties",
    "unpack",
    "write_onnx_with",
    "write_safetensors",
]
