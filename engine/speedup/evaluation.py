"""How a model is run to be looked at: in evaluation mode, for what it computes and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """Run what is inside with ``model`` in evaluation mode and without fused layers.

    A language model of transformers puts out the keys and values of all heads beside its logits,
    for the next call, if its config says ``use_cache``. They are as large as the heads, so that
    none could go: within, the config does not say so. An argument ``use_cache=True`` still does.
    """
    training = [module for module in model.modules() if module.training]
    caching = _caching(model)
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    model.eval()
    for config in caching:
        config.use_cache = False
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for config in caching:
            config.use_cache = True
        for module in training:
            module.training = True


def _caching(model: nn.Module) -> list[Any]:
    """Return the configs of the model and of its parts that ask for keys and values."""
    configs = [module.__dict__.get("config") for module in model.modules()]
    known = {id(config): config for config in configs if hasattr(config, "to_dict")}
    return [config for config in known.values() if getattr(config, "use_cache", None) is True]
