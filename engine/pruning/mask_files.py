"""The mask file: ``{layer: {"weight": mask, "bias": mask or None}}``, written by ``torch.save``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from engine.attach.wrapper import Wrapper
from engine.errors import CheckpointError, nearest
from engine.files import PathLike, load_tensors

if TYPE_CHECKING:
    from engine.pruning.companions import Companion

Masks = dict[str, dict[str, Tensor | None]]


def masks_of(wrappers: Iterable[Wrapper], companions: Iterable[Companion] = ()) -> Masks:
    """Return the masks of ``wrappers`` by layer name, as bool tensors on the CPU.

    With those of ``companions``, the norms and raw parameters that are masked with the layers.
    """
    masks: Masks = {
        wrapper.name: {
            name: None if mask is None else mask.bool().cpu()
            for name, mask in (("weight", wrapper.mask("weight")), ("bias", wrapper.mask("bias")))
        }
        for wrapper in wrappers
        if wrapper.mask("weight") is not None
    }
    for companion in companions:
        if companion.mask is not None:
            entry = masks.setdefault(companion.name, {"weight": None, "bias": None})
            entry[companion.parameter_name] = companion.mask.bool().cpu()
    return masks


def load_masks(path: PathLike) -> Masks:
    """Return the masks in a file.

    Raises:
        CheckpointError: the file is missing, damaged, or holds something else.
    """
    return _checked(load_tensors(path), f"{path} is not a mask file")


@torch.no_grad()
def apply_masks(model: nn.Module, masks: Mapping[str, Any] | PathLike) -> None:
    """Multiply masks into the weights of a plain model, all of them or none.

    Args:
        model: a model with the layers that the masks name; changed in place.
        masks: a mask file or what :func:`load_masks` returns.

    Raises:
        CheckpointError: a layer does not exist or a mask has another shape; nothing was changed.
    """
    for module, name, mask in masked_parameters(model, masks):
        parameter = module._parameters[name]
        assert parameter is not None
        parameter.mul_(mask.to(parameter.device))


def masked_parameters(
    model: nn.Module, masks: Mapping[str, Any] | PathLike
) -> list[tuple[nn.Module, str, Tensor]]:
    """Return the parameters that masks are for: each with its module, its name there and its mask.

    Args:
        model: a model with the layers that the masks name.
        masks: a mask file or what :func:`load_masks` returns.

    Raises:
        CheckpointError: a layer does not exist or a mask has another shape.
    """
    if isinstance(masks, Mapping):
        loaded = _checked(masks, "these are no masks")
    else:
        loaded = load_masks(masks)
    layers = dict(model.named_modules(remove_duplicate=False))
    faults: list[str] = []
    found: list[tuple[nn.Module, str, Tensor]] = []
    for name, entry in loaded.items():
        if name not in layers:
            near = nearest(name, layers)
            faults.append(f'no layer "{name}"' + (f', did you mean "{near}"?' if near else ""))
            continue
        for key, mask in entry.items():
            if mask is None:
                continue
            parameter = layers[name]._parameters.get(key)
            if parameter is None:
                faults.append(f'layer "{name}" has no {key}')
            elif parameter.shape != mask.shape:
                faults.append(
                    f'"{name}" {key}: mask {tuple(mask.shape)}, parameter {tuple(parameter.shape)}'
                )
            else:
                found.append((layers[name], key, mask))
    if faults:
        raise CheckpointError(
            "\n  ".join(["the masks do not fit this model; nothing was changed", *faults[:8]])
        )
    return found


def _checked(masks: Any, fault: str) -> Masks:
    fits = isinstance(masks, Mapping) and all(
        isinstance(entry, Mapping)
        and all(mask is None or _holds_zeros_and_ones(mask) for mask in entry.values())
        for entry in masks.values()
    )
    if not fits:
        raise CheckpointError(
            f'{fault}\n  masks are {{layer: {{"weight": mask, "bias": mask or None}}}}, '
            "tensors of zeros and ones"
        )
    return {layer: dict(entry) for layer, entry in masks.items()}


def _holds_zeros_and_ones(mask: Any) -> bool:
    if not isinstance(mask, Tensor) or mask.is_meta or mask.layout != torch.strided:
        return False
    return bool(((mask == 0) | (mask == 1)).all())
