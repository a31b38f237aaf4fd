"""Calibration as JSON: bits, grids and ranges of each quantized tensor, written and loaded back.

    {"conv1": {"input": {"bits": 8, "scheme": "per_tensor_affine", "scale": 0.02, "zero_point": 3,
                         "qmin": 0, "qmax": 255, "range": [-0.06, 5.04]}}}

``scale`` and ``zero_point`` are lists where channels or groups have their own; ``range`` is [min,
max] of an activation, null before there is one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from engine.attach.wrapper import Wrapper
from engine.errors import CheckpointError, nearest
from engine.files import PathLike
from engine.quantization.quant_types import QuantType, bits_of, of_type, quant_types_of

if TYPE_CHECKING:
    from engine.quantization.quantizer import Quantizer

#: Ranges and scales become float32.
_LARGEST = torch.finfo(torch.float32).max
#: Of what is computed in float32, on any device.
_ROUNDING = 1e-5
_GRID = ("scale", "zero_point", "qmin", "qmax", "range")
_FIELDS = frozenset(("bits", "scheme", "group_size", *_GRID))


def calibration_text(wrappers: Sequence[Wrapper]) -> str:
    """Return the calibration of ``wrappers`` as JSON."""
    return json.dumps(calibration_of(wrappers), indent=2) + "\n"


def calibration_of(wrappers: Sequence[Wrapper]) -> dict[str, Any]:
    """Return bits, grids and ranges of each layer as plain values; None where none was seen."""
    return {
        wrapper.name: {kind.key: _entry(wrapper, kind) for kind in quant_types_of(wrapper)}
        for wrapper in wrappers
    }


def load_calibration(quantizer: Quantizer, path: PathLike) -> None:
    """Give the activations of ``quantizer`` the grids of a calibration file, all or none.

    Weights have theirs from their values, or learned, and keep them: they come with the model. An
    activation whose range is null in the file is left as it is.

    Raises:
        CheckpointError: the file is damaged or of another configuration: other layers, tensors,
            bits or schemes; all of them are named and nothing is changed.
    """
    try:
        saved = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is no JSON: {error}") from error
    own = calibration_of(quantizer.wrappers)
    if not isinstance(saved, Mapping):
        raise CheckpointError(f"{path} is no calibration file: it maps layers to their tensors")
    faults = []
    for name in saved:
        if name not in own:
            near = nearest(name, own)
            faults.append(f'no layer "{name}"' + (f', did you mean "{near}"?' if near else ""))
    faults += [f'the file has no layer "{name}"' for name in own if name not in saved]
    found = []
    for wrapper in quantizer.wrappers:
        for kind in quant_types_of(wrapper):
            if wrapper.name not in saved or kind in (QuantType.WEIGHT, QuantType.GRADIENT):
                continue
            tensors = saved[wrapper.name]
            entry = tensors.get(kind.key) if isinstance(tensors, Mapping) else None
            fault = _fault(entry, own[wrapper.name][kind.key]) or _disagrees(entry, wrapper, kind)
            if fault:
                faults.append(f'the {kind.key} of layer "{wrapper.name}": {fault}')
            elif entry is not None and entry.get("range") is not None:
                found.append((wrapper, kind, entry))
    if faults:
        lines = [f"{path} does not fit this quantizer; nothing was changed", *faults[:8]]
        raise CheckpointError("\n  ".join(lines))
    for wrapper, kind, entry in found:
        _set_range(wrapper, kind.key, entry)


@torch.no_grad()
def _set_range(wrapper: Wrapper, key: str, entry: Mapping[str, Any]) -> None:
    """Give one activation the grid of its entry: over its range, or as the wrapper keeps it."""
    device = wrapper.device
    if key in wrapper.grids:
        low, high = (torch.tensor(float(end), device=device) for end in entry["range"])
        wrapper.grids[key].set_range(low, high)
        return
    scale, zero_point = float(entry["scale"]), float(entry["zero_point"])
    kept = {"scale": scale, "zero_point": zero_point, "offset": -zero_point * scale}
    for name, value in kept.items():
        learned = wrapper._parameters.get(f"{key}_{name}")
        if learned is not None:  # an optimizer may hold it
            learned.fill_(value)
        elif name != "offset":
            wrapper.set_attribute(f"{key}_{name}", torch.tensor(value, device=device))
    setattr(wrapper, f"{key}_qmin", int(entry["qmin"]))
    setattr(wrapper, f"{key}_qmax", int(entry["qmax"]))
    setattr(wrapper, f"{key}_seen", True)


def _fault(entry: Any, own: Mapping[str, Any]) -> str:
    if not isinstance(entry, Mapping):
        return "the file has none"
    unknown = [name for name in entry if name not in _FIELDS]
    if unknown:
        return f"it has a field {unknown[0]!r}, which there is none of"
    for name in ("bits", "scheme"):
        if entry.get(name) != own.get(name):
            return f"{name} {entry.get(name)} in the file, here {own.get(name)}"
    if entry.get("range") is None:
        return ""
    if not _are_numbers(entry["range"], 2):
        return f"a range is [min, max] or null, got {entry['range']!r}"
    for name in ("scale", "zero_point", "qmin", "qmax"):
        if not _are_numbers([entry.get(name)], 1):
            return f"{name} is {entry.get(name)!r}, a number is needed"
    return "" if entry["scale"] > 0 else f"a scale of {entry['scale']}"


def _disagrees(entry: Any, wrapper: Wrapper, kind: QuantType) -> str:
    """Return how an entry contradicts itself: its grid is said twice, which shows damage."""
    if entry.get("range") is None:
        return ""
    grid = wrapper.grids.get(kind.key)
    if grid is not None:
        ends = (torch.tensor(float(end)) for end in entry["range"])
        scale, zero_point = map(float, grid.scheme.parameters(*ends))
        if abs(scale - entry["scale"]) > _ROUNDING * scale or zero_point != entry["zero_point"]:
            return (
                f"range {entry['range']} makes scale {scale:g} and zero_point {zero_point:g}, "
                f"the file has {entry['scale']:g} and {entry['zero_point']:g}"
            )
        for name in ("qmin", "qmax"):
            own = getattr(grid.scheme, name)
            if entry[name] != own:
                return f"{name} {entry[name]} in the file, here {own}"
    else:
        made = [entry["scale"] * (entry[q] - entry["zero_point"]) for q in ("qmin", "qmax")]
        width = entry["scale"] * (entry["qmax"] - entry["qmin"])
        off = [abs(ours - end) for ours, end in zip(made, entry["range"], strict=True)]
        if max(off) > _ROUNDING * abs(width):
            return f"scale and zero_point make a range of {made}, the file has {entry['range']}"
    return ""


def _are_numbers(values: Any, count: int) -> bool:
    return (
        isinstance(values, list)
        and len(values) == count
        and all(
            isinstance(v, (int, float)) and not isinstance(v, bool) and -_LARGEST <= v <= _LARGEST
            for v in values
        )
        and values == sorted(values)
    )


def _entry(wrapper: Wrapper, kind: QuantType) -> dict[str, Any]:
    key = kind.key
    grid = wrapper.grids.get(key)
    grouped = grid is not None and grid.scheme.group_size is not None
    kept = {
        name: _plain(getattr(wrapper, f"{key}_{name}"), grouped)
        for name in _GRID
        if hasattr(wrapper, f"{key}_{name}")
    }
    single = isinstance(kept.get("scale"), float) and kind != QuantType.WEIGHT
    if single and "range" not in kept and wrapper.__dict__.get(f"{key}_seen", False):
        zero_point = kept.get("zero_point", 0)
        kept["range"] = [kept["scale"] * (kept[end] - zero_point) for end in ("qmin", "qmax")]
    entry: dict[str, Any] = {"bits": bits_of(wrapper, kind)}
    if grid is not None:
        entry["scheme"] = grid.scheme.name
        if grouped:
            entry["group_size"] = grid.scheme.group_size
    elif of_type(wrapper.config.get("quant_scheme"), kind) is not None:
        entry["scheme"] = of_type(wrapper.config["quant_scheme"], kind)
    return entry | kept


def _plain(value: Any, grouped: bool) -> Any:
    """Return ``value`` as JSON has it, which has no NaN: a range before any batch is None."""
    if not isinstance(value, Tensor):
        return value
    value = value.detach()
    if not bool(torch.isfinite(value).all()):
        return None
    # Scales are kept ready to broadcast: (1, channels, 1, 1), or (channels, groups, 1).
    kept = value.flatten() if value.dim() > 1 and not grouped else value
    return (kept.squeeze(-1) if grouped else kept).tolist()
