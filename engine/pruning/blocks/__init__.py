"""Whole blocks of a model: found, measured, passed by, removed."""

from engine.pruning.blocks.found import Block, repeated_blocks
from engine.pruning.blocks.pruner import BlockPruner

__all__ = ["Block", "BlockPruner", "repeated_blocks"]
