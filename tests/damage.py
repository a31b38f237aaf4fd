"""Files as disks, transfers and people damage them."""

from __future__ import annotations

import io
import json
import random
from typing import Any

import torch

#: What stands where something else is expected.
JUNK: list[Any] = [
    *(None, True, 0, -1, 1.5, 1e308, 10**30, float("nan"), float("inf")),
    *("", "a", "\0", "é" * 50, [], {}, [[]], [None], {"a": {}}, {"": 1}),
]
TENSORS: list[Any] = [
    torch.ones(3),
    torch.tensor(2),
    torch.ones(2, 2, dtype=torch.bool),
    torch.full((4,), float("nan")),
    torch.ones(3, device="meta"),
    torch.ones(3, 3).to_sparse(),
    torch.ones(2, dtype=torch.complex64),
    torch.ones(0),
    torch.nn.Parameter(torch.ones(2)),
]


def flipped(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 8])):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def cut(data: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(data))
    return rng.choice([data[:place], data[place:], data + data[:place], b"", data[:place] * 2])


def overwritten(data: bytes, rng: random.Random) -> bytes:
    place, length = rng.randrange(len(data)), rng.randrange(1, 64)
    filling = rng.choice([b"\0", b"\xff", b" ", rng.randbytes(1)]) * length
    return data[:place] + filling + data[place + length :]


def _changed(value: Any, rng: random.Random, junk: list[Any]) -> Any:
    """Return ``value`` with one thing in it replaced, renamed, added or taken away."""
    inside = list(value) if isinstance(value, dict) else []
    if isinstance(value, list | tuple) and value:
        inside = list(range(len(value)))
    if not inside or rng.random() < 0.15:
        return rng.choice(junk)
    key = rng.choice(inside)
    copied: Any = dict(value) if isinstance(value, dict) else list(value)
    action = rng.random()
    if action < 0.7:
        copied[key] = _changed(copied[key], rng, junk)
    elif action < 0.85 or not isinstance(copied, dict):
        del copied[key]
    else:
        copied[rng.choice(["", "a", "weight", 0, None])] = copied.pop(key)
    return copied


def other_json(data: bytes, rng: random.Random) -> bytes:
    return json.dumps(_changed(json.loads(data), rng, JUNK)).encode()


def other_tensors(data: bytes, rng: random.Random) -> bytes:
    """Return a file of ``torch.save`` with something else in it, which has no digest."""
    value = torch.load(io.BytesIO(data), weights_only=True)
    stream = io.BytesIO()
    try:
        torch.save(_changed(value, rng, JUNK + TENSORS), stream)
    except Exception:  # what PyTorch itself does not save
        return b""
    return stream.getvalue()


def damaged(data: bytes, name: str, rng: random.Random) -> tuple[str, bytes]:
    """Return what was done to a file, and its bytes then."""
    ways: dict[str, Any] = {"flipped": flipped, "cut": cut, "overwritten": overwritten}
    if name.endswith(".json"):
        ways["other"] = other_json
    elif not name.endswith((".safetensors", ".db")):
        ways["other"] = other_tensors
    way = rng.choice(list(ways))
    return way, ways[way](data, rng)
