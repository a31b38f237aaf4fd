"""Speedup: a masked model becomes physically smaller, with the same outputs."""

from engine.speedup.constants import drop_constants
from engine.speedup.groups import Block, Slice, channel_blocks
from engine.speedup.report import LayerChange, SpeedupReport
from engine.speedup.shrink import SpeedupError, speedup

__all__ = [
    "Block",
    "LayerChange",
    "Slice",
    "SpeedupError",
    "SpeedupReport",
    "channel_blocks",
    "drop_constants",
    "speedup",
]
