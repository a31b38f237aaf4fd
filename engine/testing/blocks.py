"""Checks of what an algorithm does that removes whole blocks."""

from __future__ import annotations

import torch

from engine.attach.compressor import Compressor
from engine.pruning.blocks import BlockPruner
from engine.pruning.masks import prune_count
from engine.testing.outcome import BLOCKS, check, require
from engine.testing.subject import Subject


@check(BLOCKS)
def as_many_blocks_go_as_were_asked(subject: Subject) -> None:
    """Of all blocks the asked fraction is passed by, the same ones the second time."""
    for sparsity in (0.0, 0.25, 0.5, 0.9):
        first, second = (_of(subject.attach(subject.model(), sparsity=sparsity)) for _ in range(2))
        gone, total = first.removed_blocks(), len(first.wrappers)
        require(
            len(gone) == prune_count(total, sparsity),
            f"{len(gone)} of {total} are removed, a fraction of {sparsity} was asked",
        )
        require(gone == second.removed_blocks(), "other blocks are removed the second time")


@check(BLOCKS)
def the_smaller_model_computes_the_same(subject: Subject) -> str:
    """Without the removed blocks the model has fewer parameters and the same outputs."""
    model = subject.model()
    pruner = _of(subject.attach(model))
    x = subject.inputs(99)
    with torch.no_grad():
        expected = model.eval()(*x)
        before = sum(p.numel() for p in model.parameters())
        found = pruner.apply_speedup(x)(*x)
    after = sum(p.numel() for p in model.parameters())
    require(torch.equal(expected, found), "outputs differ from those with blocks passed by")
    require(after < before, f"{before} parameters are {after} afterwards")
    return f"{before} parameters, then {after}"


def _of(compressor: Compressor) -> BlockPruner:
    assert isinstance(compressor, BlockPruner)
    return compressor
