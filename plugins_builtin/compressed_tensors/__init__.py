"""A folder that transformers loads: packed integers of a language model's layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Size, Tensor

from engine.export import (
    FolderExporter,
    Refused,
    Source,
    SourceLayer,
    Stated,
    config_of,
    quietly,
    refused_model,
    refused_ties,
)


class CompressedTensorsExporter(FolderExporter):
    """Writes ``config.json`` and ``model.safetensors`` in the format pack-quantized.

    Integers of linear layers lie in words of 32 bits, the first column in the lowest bits, beside
    their scales; what is not quantized is as it is. ``from_pretrained(folder)`` loads the model
    where the package compressed-tensors is installed. Tensors are written one by
    one. A head that is tied to the embedding stays one with it.

    Args:
        tokenizer: of transformers, saved beside the model.
    """

    def __init__(self, tokenizer: Any = None) -> None:
        self.tokenizer = tokenizer

    def refusals(self, source: Source) -> list[Refused]:
        """Refuse other models than those of transformers, and other ties than the head's."""
        return refused_model(source.model) or [
            *refused_ties(source),
            *(each for layer in source.quantized.values() for each in _ragged(layer)),
        ]

    def stated(self, source: Source) -> Stated:
        """Return what is written: words, scales and shapes in place of quantized weights."""
        by_key = {layer.key: layer for layer in source.quantized.values()}
        stated: Stated = {}
        for key, (shape, dtype) in source.shapes().items():
            layer = by_key.get(key)
            stated |= {key: (shape, dtype)} if layer is None else _stated(layer)
        return stated

    def tensors(self, source: Source) -> Iterator[tuple[str, Tensor]]:
        """Yield them one by one."""
        by_key = {layer.key: layer for layer in source.quantized.values()}
        for key in source.shapes():
            if key in by_key:
                yield from _parts(by_key[key])
            else:
                yield key, source.tensor(key)

    def describe(self, source: Source, path: Path) -> None:
        """Write ``config.json``, and what else ``from_pretrained`` reads."""
        model: Any = source.model
        config = config_of(model)
        config.quantization_config = _quantization_config(source)
        config.save_pretrained(path)
        if getattr(model, "generation_config", None) is not None:
            model.generation_config.save_pretrained(path)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(path)

    def read(self, path: Path, source: Source) -> Callable[..., Any]:
        """Return the model that transformers loads."""
        with quietly():
            model: Any = type(source.model)
            loaded = model.from_pretrained(path, dtype=source.model.dtype)
        evaluated: Callable[..., Any] = loaded.eval()
        return evaluated


def _ragged(layer: SourceLayer) -> Iterator[Refused]:
    size = layer.facts.group_size
    if size and layer.shape[1] % size:
        reason = f"has {layer.shape[1]} inputs, which groups of {size} do not divide"
        yield Refused(layer.name, reason)


def _stated(layer: SourceLayer) -> Stated:
    rows, columns = layer.shape
    words = 32 // layer.facts.bits
    groups = columns // layer.facts.group_size if layer.facts.group_size else 1
    found: Stated = {
        "weight_packed": (Size([rows, math.ceil(columns / words)]), torch.int32),
        "weight_scale": (Size([rows, groups]), torch.float32),
        "weight_shape": (Size([2]), torch.int64),
    }
    return {f"{layer.name}.{name}": each for name, each in found.items()}


def _parts(layer: SourceLayer) -> Iterator[tuple[str, Tensor]]:
    integers, form = layer.integers()
    bits = layer.facts.bits
    # Codes count from the type's least integer, -8 of 4 bits, also where a grid has none there.
    yield f"{layer.name}.weight_packed", _packed(integers + (1 << (bits - 1)), bits)
    yield f"{layer.name}.weight_scale", form.scale.reshape(layer.shape[0], -1).float()
    yield f"{layer.name}.weight_shape", torch.tensor(layer.shape)


def _packed(codes: Tensor, bits: int) -> Tensor:
    """Return codes (rows, columns) in words (rows, columns * bits / 32), the first one lowest."""
    words = 32 // bits
    codes = torch.nn.functional.pad(codes.cpu(), (0, -codes.shape[1] % words))
    parts = codes.reshape(codes.shape[0], -1, words)
    result = torch.zeros(parts.shape[:2], dtype=torch.int32)
    for place in range(words):
        result |= parts[..., place].to(torch.int32) << (place * bits)
    return result


def _quantization_config(source: Source) -> dict[str, Any]:
    groups: dict[tuple[int, int | None], list[str]] = {}
    for layer in source.quantized.values():
        settings = layer.facts.bits, layer.facts.group_size
        groups.setdefault(settings, []).append(layer.name)
    linear = [n for n, m in source.model.named_modules() if isinstance(m, torch.nn.Linear)]
    config_groups = {}
    for place, ((bits, group_size), names) in enumerate(groups.items()):
        config_groups[f"group_{place}"] = {
            "targets": ["Linear"] if len(groups) == 1 else names,
            "input_activations": None,
            "output_activations": None,
            "weights": {
                "num_bits": bits,
                "type": "int",
                "symmetric": True,
                "strategy": "group" if group_size else "channel",
                "group_size": group_size,
                "dynamic": False,
            },
        }
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "ignore": [name for name in linear if name not in source.quantized],
        "config_groups": config_groups,
    }
