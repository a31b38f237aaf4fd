"""A plugin engine for compressing PyTorch models. Names are loaded when they are first used."""

from __future__ import annotations

# Not from typing, which takes longer to import than all of this.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from engine.analysis.layer_table import layer_table
    from engine.attach.compressor import Compressor
    from engine.attach.create import create_compressor
    from engine.attach.watch import LayerState, Watcher, layer_states, total_sparsity
    from engine.attach.wrapper import Wrapper
    from engine.errors import (
        CheckpointError,
        ConfigError,
        EngineError,
        ExportError,
        PluginError,
        Problem,
    )
    from engine.experiment import (
        BasicConfig,
        experiment_args,
        print_result,
        report_model,
        save_model,
    )
    from engine.export import load_quantized
    from engine.hookspecs import hookimpl
    from engine.pruning.mask_files import apply_masks, load_masks
    from engine.pruning.pruner import Pruner
    from engine.pruning.schedule import Schedule
    from engine.quantization.quantizer import (
        QuantGrad,
        Quantizer,
        QuantType,
        bits_of,
        quant_types_of,
    )
    from engine.speedup import load_compressed, save_compressed
    from engine.streaming import CompressedFolder, compress_folder

_HOME = {
    "BasicConfig": "engine.experiment",
    "CheckpointError": "engine.errors",
    "CompressedFolder": "engine.streaming",
    "Compressor": "engine.attach.compressor",
    "ConfigError": "engine.errors",
    "EngineError": "engine.errors",
    "ExportError": "engine.errors",
    "LayerState": "engine.attach.watch",
    "PluginError": "engine.errors",
    "Problem": "engine.errors",
    "Pruner": "engine.pruning.pruner",
    "QuantGrad": "engine.quantization.quantizer",
    "QuantType": "engine.quantization.quantizer",
    "Quantizer": "engine.quantization.quantizer",
    "Schedule": "engine.pruning.schedule",
    "Watcher": "engine.attach.watch",
    "Wrapper": "engine.attach.wrapper",
    "apply_masks": "engine.pruning.mask_files",
    "bits_of": "engine.quantization.quantizer",
    "compress_folder": "engine.streaming",
    "create_compressor": "engine.attach.create",
    "experiment_args": "engine.experiment",
    "hookimpl": "engine.hookspecs",
    "layer_states": "engine.attach.watch",
    "layer_table": "engine.analysis.layer_table",
    "load_compressed": "engine.speedup",
    "load_masks": "engine.pruning.mask_files",
    "load_quantized": "engine.export",
    "print_result": "engine.experiment",
    "quant_types_of": "engine.quantization.quantizer",
    "report_model": "engine.experiment",
    "save_compressed": "engine.speedup",
    "save_model": "engine.experiment",
    "total_sparsity": "engine.attach.watch",
}

__all__ = [
    "BasicConfig",
    "CheckpointError",
    "CompressedFolder",
    "Compressor",
    "ConfigError",
    "EngineError",
    "ExportError",
    "LayerState",
    "PluginError",
    "Problem",
    "Pruner",
    "QuantGrad",
    "QuantType",
    "Quantizer",
    "Schedule",
    "Watcher",
    "Wrapper",
    "apply_masks",
    "bits_of",
    "compress_folder",
    "create_compressor",
    "experiment_args",
    "hookimpl",
    "layer_states",
    "layer_table",
    "load_compressed",
    "load_masks",
    "load_quantized",
    "print_result",
    "quant_types_of",
    "report_model",
    "save_compressed",
    "save_model",
    "total_sparsity",
]


#: Packages with public names of their own: ``engine.speedup.speedup(...)`` after ``import engine``.
_PACKAGES = frozenset(
    (
        *("algorithms", "analysis", "automatic", "calibration", "export", "extensions"),
        *("pruning", "quantization", "speedup", "testing"),
    )
)


def __getattr__(name: str) -> Any:
    from importlib import import_module

    home = _HOME.get(name)
    if home is None:
        if name in _PACKAGES:
            return import_module(f"engine.{name}")
        raise AttributeError(f"module 'engine' has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
