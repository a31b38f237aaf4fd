"""A safetensors file written tensor by tensor: only one of them is in memory.

The format (https://github.com/huggingface/safetensors): the length of the header in 8 bytes, the
header as JSON, then the tensors, without holes between them. Shapes and dtypes are known before the
values are, so that the header can be written first.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from engine.errors import ExportError

#: Names of the format.
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_ALIGNED = 8


def write_safetensors(
    path: Path,
    stated: Mapping[str, tuple[Iterable[int], torch.dtype]],
    tensors: Iterable[tuple[str, Tensor]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write ``tensors`` one after the other.

    Args:
        path: the file; it is not read back.
        stated: shape and dtype of each, in the order in which they come.
        tensors: names and values, on any device. Each is let go before the next is asked for.
        metadata: what else the header says.

    Raises:
        ExportError: a dtype that the format has not.
        ValueError: a tensor is not what was stated of it, or they are not as many.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    place = 0
    for name, (shape, dtype) in stated.items():
        if dtype not in DTYPES:
            raise ExportError(f'safetensors holds no {dtype}: "{name}"')
        sizes = list(shape)
        end = place + torch.Size(sizes).numel() * dtype.itemsize
        header[name] = {"dtype": DTYPES[dtype], "shape": sizes, "data_offsets": [place, end]}
        place = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNED)
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little"))
        stream.write(text)
        waiting = iter(stated.items())
        for name, tensor in tensors:
            expected, (shape, dtype) = next(waiting, ("", ((), torch.float32)))
            found = (name, tuple(tensor.shape), tensor.dtype)
            if found != (expected, tuple(shape), dtype):
                raise ValueError(f"{found} was given, {(expected, tuple(shape), dtype)} was stated")
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            stream.write(flat.view(torch.uint8).numpy().data)
            del tensor, flat
        left = [name for name, _ in waiting]
        if left:
            raise ValueError(f"{left[0]} was stated and not given")
