"""What exporters of language models need of transformers: the configuration, what is tied."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from engine.export.exporter import Refused
from engine.export.source import Source


def refused_model(model: nn.Module) -> list[Refused]:
    """Return why a model is none of transformers', whose config goes into the file; or nothing."""
    if all(hasattr(model, name) for name in ("config", "save_pretrained", "from_pretrained")):
        return []
    name = type(model).__name__
    return [Refused("", f"is a {name}; a model of transformers, which has a config, is needed")]


def refused_ties(source: Source) -> list[Refused]:
    """Return what shares a weight in a way that no file of transformers says.

    A head tied to the embedding stays one with it: it is written once, and ``tie_word_embeddings``
    of the config says so. Quantized, both have to be, to the same values.
    """
    config = _text_config(source.model)
    tied = bool(getattr(config, "tie_word_embeddings", False))
    by_key = {layer.key: layer for layer in source.quantized.values()}
    refused = []
    for key, owner in source.aliases.items():
        own, first = by_key.get(key), by_key.get(owner)
        if own is not None and first is not None:
            if not torch.equal(own.weight(), first.weight()):
                reason = f'and "{first.name}" share a weight and quantize it to other values'
                refused.append(Refused(own.name, reason))
        elif own is not None or first is not None:
            name = own.name if own is not None else first.name if first is not None else ""
            other = owner if own is not None else key
            reason = f"shares its weight with {other}, which is not quantized: both, or neither"
            refused.append(Refused(name, reason))
        if not tied:
            layer = key.rpartition(".")[0]
            refused.append(
                Refused(layer, f"shares {owner}, and config.tie_word_embeddings does not say so")
            )
    return refused


def config_of(model: Any) -> Any:
    """Return a copy of a transformers model's config that names its class and dtype.

    What an earlier quantization left in it is taken out: the weights are plain ones.
    """
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    config.dtype = model.dtype
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    return config


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Within, transformers and what it calls show no bars and say nothing below errors."""
    logs = [logging.getLogger(name) for name in ("transformers", "compressed_tensors")]
    levels = [log.level for log in logs]
    try:
        for log in logs:
            log.setLevel(logging.ERROR)
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)


def _text_config(model: Any) -> Any:
    config = model.config
    get = getattr(config, "get_text_config", None)
    return config if get is None else get()
