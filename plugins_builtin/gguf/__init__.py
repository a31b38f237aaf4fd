"""GGUF: a Llama-like language model in blocks of 32 integers of 4 or 8 bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.export import (
    Exporter,
    Refused,
    Source,
    SourceLayer,
    config_of,
    quietly,
    refused_model,
    refused_ties,
)
from plugins_builtin.gguf.architectures import ARCHITECTURES, refused, rows_of, write_metadata
from plugins_builtin.gguf.blocks import TYPES, blocks, scales, unfit

_FLOATS = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_REST = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


class GGUFExporter(Exporter):
    """Writes quantized layers as Q4_0 or Q8_0, norms in float32, the rest in ``rest``.

    Grids are symmetric, shared by a tensor, a channel or a group of a multiple of 32 weights; their
    scales are stored in half precision, which those of groups fit exactly. A head that is tied to
    the embedding is left out, as readers expect it. Tensors are written one by one. There is no
    tokenizer in the file.

    Args:
        rest: the dtype of what is not quantized; "same": the model's.
        name: of the model, in the file's metadata.
    """

    def __init__(self, rest: str = "same", name: str = "") -> None:
        self.rest, self.name = rest, name

    def refusals(self, source: Source) -> list[Refused]:
        """Refuse architectures that are not known, and grids that blocks of 32 do not hold."""
        if no_model := refused_model(source.model):
            return no_model
        found = [*refused(source.model), *refused_ties(source)]
        for layer in source.quantized.values():
            reason = unfit(layer)
            if reason is not None:
                found.append(Refused(layer.name, reason))
        return found

    def write(self, source: Source, path: Path) -> None:
        """Write the file."""
        import gguf

        config = config_of(source.model)
        architecture = ARCHITECTURES[config.model_type].name
        arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
        names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
        by_key = {layer.key: layer for layer in source.quantized.values()}
        writer = gguf.GGUFWriter(path, architecture)
        writer.add_name(self.name or architecture)
        write_metadata(writer, config)
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        for key, (shape, dtype) in source.shapes().items():
            kind, size = self._stored(by_key.get(key), shape, dtype)
            name = names.get_name(key, try_suffixes=(".weight", ".bias"))
            assert name is not None, key
            writer.add_tensor_info(
                name, size, _numpy(kind), _bytes(size, kind), gguf.GGMLQuantizationType[kind]
            )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for values in self._values(source, config, by_key):
            writer.write_tensor_data(values.numpy())
        writer.close()

    def read(self, path: Path, source: Source) -> Callable[..., Any]:
        """Return the model that transformers loads."""
        with quietly():
            model: Any = type(source.model)
            loaded = model.from_pretrained(
                # A bare name would be looked for in the current folder first.
                path.parent,
                gguf_file=str(path),
                dtype=source.model.dtype,
            )
        loaded.config.use_cache = config_of(source.model).use_cache
        evaluated: Callable[..., Any] = loaded.eval()
        return evaluated

    def explained(self, source: Source) -> list[float]:
        """Return what storing scales, and the rest, in less precision makes of the outputs."""
        return source.moved_by(self._as_read)

    def _as_read(self, source: Source, key: str) -> Tensor | None:
        """Return a tensor as readers have it, where that is another."""
        layer = next((each for each in source.quantized.values() if each.key == key), None)
        if layer is None:
            value = source.tensor(key)
            stored = value.to(self._rest(value.shape, value.dtype)).to(value.dtype)
            return None if torch.equal(stored, value) else stored
        if not layer.facts.half:
            return None
        integers, form = layer.integers()
        return form._replace(scale=form.scale.half().float()).values(integers)

    def _values(
        self, source: Source, config: Any, by_key: dict[str, SourceLayer]
    ) -> Iterator[Tensor]:
        for key in source.shapes():
            layer = by_key.get(key)
            if layer is None:
                value = source.tensor(key)
                value = rows_of(config, key, value.to(self._rest(value.shape, value.dtype)))
                # NumPy has no bfloat16.
                bits = value.view(torch.int16) if value.dtype == torch.bfloat16 else value
                yield bits.contiguous()
            else:
                integers, form = layer.integers()
                packed = blocks(integers, scales(form, layer.shape), layer.facts.bits)
                yield rows_of(config, key, packed).contiguous()

    def _stored(
        self, layer: SourceLayer | None, shape: torch.Size, dtype: torch.dtype
    ) -> tuple[str, list[int]]:
        """Return the type of a tensor, and its shape, in bytes where it is of integers."""
        if layer is None:
            return _FLOATS[self._rest(shape, dtype)], list(shape)
        kind, size = TYPES[layer.facts.bits]
        return kind, [shape[0], shape[1] // 32 * size]

    def _rest(self, shape: torch.Size, dtype: torch.dtype) -> torch.dtype:
        if len(shape) < 2:  # norms and biases, which readers have in float32
            return torch.float32
        return dtype if self.rest == "same" else _REST[self.rest]


def _numpy(kind: str) -> Any:
    import numpy

    types = {"F32": numpy.float32, "F16": numpy.float16, "BF16": numpy.int16}
    return numpy.dtype(types.get(kind, numpy.uint8))


def _bytes(size: list[int], kind: str) -> int:
    return int(torch.Size(size).numel() * _numpy(kind).itemsize)
