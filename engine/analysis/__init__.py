"""What a model costs, what of it goes together, and how much pruning each layer hurts."""

from engine.analysis.conflicts import MaskConflicts, fix_mask_conflict, mask_conflicts
from engine.analysis.dependencies import (
    ChannelDependency,
    GroupDependency,
    InputChannelDependency,
)
from engine.analysis.sensitivity import SensitivityAnalysis
from engine.analysis.side_by_side import SpeedupTable, speedup_table
from engine.analysis.size import ModelSize, model_size
from engine.pruning.costs.count import LayerCount, ModelCount, count_flops_params
from engine.pruning.costs.latency import Latency, LatencyRatio, compare_latency, measure_latency

__all__ = [
    "ChannelDependency",
    "GroupDependency",
    "InputChannelDependency",
    "Latency",
    "LatencyRatio",
    "LayerCount",
    "MaskConflicts",
    "ModelCount",
    "ModelSize",
    "SensitivityAnalysis",
    "SpeedupTable",
    "compare_latency",
    "count_flops_params",
    "fix_mask_conflict",
    "mask_conflicts",
    "measure_latency",
    "model_size",
    "speedup_table",
]
