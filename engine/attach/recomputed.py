"""Whether a forward pass runs again within a backward pass, as activation checkpointing has it.

``torch.utils.checkpoint`` throws activations away and computes them again when gradients need them.
The second pass is over data that have been seen: it must give the same values as the first, and
nothing that counts batches may count it.
"""

from __future__ import annotations

import torch


def is_recomputed() -> bool:
    """Return whether the forward pass that runs is a recomputation.

    In both kinds of checkpointing, reentrant or not, it runs while autograd executes a graph. What
    ``torch.compile`` traces is never one: it plans its recomputations by itself.
    """
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() >= 0
