"""Speedup: a masked model becomes physically smaller, with the same outputs."""

from engine.speedup.constants import drop_constants
from engine.speedup.graph_module import as_graph_module
from engine.speedup.groups import Block, Member, Slice, channel_blocks
from engine.speedup.pretrained import fit_config
from engine.speedup.recipe import is_smaller, load_compressed, save_compressed
from engine.speedup.report import LayerChange, SpeedupReport
from engine.speedup.rules import RuleLike
from engine.speedup.shrink import SpeedupError, speedup
from engine.speedup.trace import Rule

__all__ = [
    "Block",
    "LayerChange",
    "Member",
    "Rule",
    "RuleLike",
    "Slice",
    "SpeedupError",
    "SpeedupReport",
    "as_graph_module",
    "channel_blocks",
    "drop_constants",
    "fit_config",
    "is_smaller",
    "load_compressed",
    "save_compressed",
    "speedup",
]
