"""A quantized model as one file: packed integers where weights are quantized, the rest as it is.

Two containers hold the same parts: what ``torch.save`` writes, and safetensors for a file whose
name ends in ``.safetensors`` (the extra ``engine[safetensors]``), which other languages read, too.
There a packed weight ``fc.weight`` is the tensors ``fc.weight:codes``, ``fc.weight:scale`` and so
on, and what is no tensor is JSON in the file's metadata.
"""

from __future__ import annotations

import collections
import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine.attach.computed import Stage, is_computed
from engine.attach.layout import Layout
from engine.attach.parametrized import only_looking, source_of
from engine.attach.wrapper import Wrapper
from engine.errors import CheckpointError, ExportError
from engine.export.packed import PackedWeight, pack, to_plain, unpack
from engine.files import PathLike, load_tensors, save_tensors, write_whole
from engine.files.digest import FIELD, sign_safetensors, verify
from engine.files.plain import says
from engine.files.read_back import require_same
from engine.quantization.layer_grids import begun
from engine.quantization.quant_types import QuantType, bits_of, quant_types_of

_FORMAT = "engine.quantized"
_VERSION = 1
#: What the metadata of a safetensors file may hold.
_FACTS = frozenset(("format", "version", "quantized", "aliases", *FIELD))
_SUFFIX = ".safetensors"
_PARTS = ("codes", "present", "table", "scale", "zero_point")


def save_quantized(
    path: PathLike, packed: Mapping[str, PackedWeight], rest: Mapping[str, Any]
) -> None:
    """Write packed weights and the rest of a ``state_dict``, whole or not at all.

    Raises:
        ExportError: the file cannot be written; or it is to be safetensors, and that is not
            installed or a part of ``rest`` is no tensor.
    """
    if Path(path).suffix == _SUFFIX:
        _save_safetensors(path, packed, rest)
        return
    save_tensors(
        path,
        {
            "format": _FORMAT,
            "version": _VERSION,
            "quantized": {key: to_plain(weight) for key, weight in packed.items()},
            "rest": dict(rest),
        },
        read_back=True,
    )


def load_quantized(model: nn.Module, path: PathLike) -> nn.Module:
    """Load a file of ``Quantizer.export_model`` into a plain model; return the model.

    The weights are the fake-quantized ones, bit for bit, in the model's floating dtype.

    Raises:
        CheckpointError: the file is damaged, of another kind, or does not fit the model, which is
            then unchanged.
    """
    from engine.attach.checkpoint import load_model

    saved = _read_safetensors(path) if Path(path).suffix == _SUFFIX else load_tensors(path)
    if not isinstance(saved, Mapping) or not says(saved.get("format"), _FORMAT):
        raise CheckpointError(f"{path} is not a quantized model written by export_model")
    if not says(saved.get("version"), _VERSION):
        raise CheckpointError(
            f"{path} has version {saved.get('version')}, this engine reads version {_VERSION}"
        )
    try:
        state = dict(saved["rest"])
        for key, parts in saved["quantized"].items():
            state[key] = unpack(PackedWeight(**parts))
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        # Whatever somebody else may have put in the place of our fields.
        raise CheckpointError(f"{path} is damaged: {error}") from error
    load_model(model, state)
    return model


def packed_weights(wrappers: Sequence[Wrapper]) -> dict[str, PackedWeight]:
    """Return the packed weight of each layer whose weight is quantized, by state_dict key.

    Layers that share a weight and how it is quantized share what is packed, too: the same object.

    Raises:
        ExportError: a weight is not finite, or not on a grid of its bits; the layer is named.
    """
    packed: dict[str, PackedWeight] = {}
    weighted = [w for w in wrappers if QuantType.WEIGHT in quant_types_of(w)]
    users = collections.Counter(id(source_of(wrapper.module)) for wrapper in weighted)
    shared: dict[int, tuple[Tensor, PackedWeight]] = {}
    for wrapper in weighted:
        source = id(source_of(wrapper.module))
        if not is_computed(wrapper.module, Stage.QUANTIZE):
            raise ExportError("call compress() before a quantized model is exported")
        with torch.no_grad(), begun(wrapper), only_looking(wrapper.module):
            weight = wrapper.module.weight
        assert isinstance(weight, Tensor)
        if wrapper.weight is not None and not bool(wrapper.weight.isfinite().all()):
            raise ExportError(
                f'layer "{wrapper.name}": the weight holds NaN or infinity, which no grid spans\n'
                "  look for the step of the training after which it does"
            )
        try:
            key = f"{wrapper.name}.weight" if wrapper.name else "weight"
            group, bits = _group_of(wrapper, QuantType.WEIGHT), bits_of(wrapper, QuantType.WEIGHT)
            if source in shared:
                before, known = shared[source]
                if known.bits == bits and torch.equal(before, weight):
                    packed[key] = known
                    continue
            packed[key] = pack(
                weight,
                bits,
                _flat(getattr(wrapper, "weight_scale", None), group),
                _flat(getattr(wrapper, "weight_zero_point", None), group),
                int(getattr(wrapper, "weight_qmin", 0)),
                group,
            )
            if users[source] > 1:
                shared[source] = weight, packed[key]
        except ExportError as error:
            raise ExportError(f'layer "{wrapper.name}": {error}') from error
    return packed


def _group_of(wrapper: Wrapper, quant_type: QuantType) -> tuple[int, ...] | None:
    """Return the axis of channels and the size of the groups that share a scale, if any do.

    Channels of a transposed convolution of several groups are rows of one group: their number of
    groups follows.
    """
    scheme = getattr(wrapper.grids.get(quant_type.key), "scheme", None)
    scheme = wrapper.__dict__.get("weight_scheme") if scheme is None else scheme
    if scheme is None or scheme.axis is None:
        return None
    if scheme.split > 1:
        layout = Layout(scheme.axis, scheme.split)
        whole = wrapper.weight.numel() // max(layout.count(wrapper.weight.shape), 1)
        return scheme.axis, scheme.group_size or max(whole, 1), scheme.split
    return None if scheme.group_size is None else (scheme.axis, scheme.group_size)


def _flat(value: Tensor | None, group: tuple[int, ...] | None) -> Tensor | None:
    """Return the scales of groups as (channels, groups); they are kept ready to broadcast."""
    if value is None or group is None or not value.dim():
        return value
    return value.reshape(value.shape[0], -1)


def _save_safetensors(
    path: PathLike, packed: Mapping[str, PackedWeight], rest: Mapping[str, Any]
) -> None:
    if importlib.util.find_spec("safetensors") is None:
        raise ExportError(
            f"{path} is a safetensors file, and safetensors is not installed\n"
            "  pip install 'engine[safetensors]', or choose a name that ends in .pth"
        )
    from safetensors import safe_open
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    first: dict[tuple[Any, ...], str] = {}
    for key, value in rest.items():
        if not isinstance(value, Tensor):
            raise ExportError(
                f'safetensors holds tensors only, "{key}" is a {type(value).__name__}\n'
                "  choose a name that ends in .pth"
            )
        # Parameters that are shared are written once.
        place = (value.data_ptr(), value.shape, value.stride(), value.dtype)
        owner = first.setdefault(place, key) if value.numel() else key
        if owner != key:
            aliases[key] = owner
            continue
        tensors[key] = value.detach().cpu().contiguous().clone()
    plain: dict[str, dict[str, Any]] = {}
    written: dict[int, str] = {}
    for key, weight in packed.items():
        if written.setdefault(id(weight), key) != key:
            aliases[key] = written[id(weight)]
            continue
        parts = to_plain(weight)
        tensors |= {f"{key}:{name}": parts[name] for name in _PARTS if parts[name] is not None}
        plain[key] = {name: value for name, value in parts.items() if name not in _PARTS}
    facts = {"format": _FORMAT, "version": str(_VERSION)}
    facts |= {"quantized": json.dumps(plain), "aliases": json.dumps(aliases), **FIELD}

    def write(temporary: Path) -> None:
        save_file(tensors, str(temporary), metadata=facts)
        sign_safetensors(temporary)
        with safe_open(str(temporary), "pt") as stream:
            read = {key: stream.get_tensor(key) for key in stream.keys()}  # noqa: SIM118
        require_same(dict(sorted(tensors.items())), dict(sorted(read.items())), path)

    write_whole(path, write)


def _read_safetensors(path: PathLike) -> dict[str, Any]:
    """Return what :func:`save_quantized` gives to ``torch.save``, from a safetensors file."""
    if importlib.util.find_spec("safetensors") is None:
        raise CheckpointError(
            f"{path} is a safetensors file, and safetensors is not installed\n"
            "  pip install 'engine[safetensors]'"
        )
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise CheckpointError(f"there is no file {path}")
    try:
        verify(Path(path))
        with safe_open(str(path), "pt") as stream:
            facts = stream.metadata() or {}
            rest = {key: stream.get_tensor(key) for key in stream.keys()}  # noqa: SIM118
        if unknown := set(facts) - _FACTS:
            raise ValueError(f"its metadata has {sorted(unknown)[0]!r}, which there is none of")
        plain = json.loads(facts.get("quantized", "{}"))
        aliases = json.loads(facts.get("aliases", "{}"))
        version = int(facts.get("version", 0))
        quantized = {}
        for key, fields in plain.items():
            parts = {name: rest.pop(f"{key}:{name}", None) for name in _PARTS}
            group = fields["group"]
            fields = {**fields, "group": None if group is None else tuple(group)}
            quantized[key] = {**fields, **parts}
        for key, owner in aliases.items():
            into = quantized if owner in quantized else rest
            into[key] = into[owner]
    except (SafetensorError, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        raise CheckpointError(f"{path} cannot be loaded: {error}") from error
    return {
        "format": facts.get("format"),
        "version": version,
        "quantized": quantized,
        "rest": rest,
    }
