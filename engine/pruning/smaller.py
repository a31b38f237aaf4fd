"""From a pruner's masks to a smaller model: all of it, or nothing."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from engine import speedup
from engine.attach.computed import Stage, compute_weight, is_computed, plain_weight
from engine.attach.parametrized import is_parametrized, refusal
from engine.pruning.mask_holder import MaskHolder
from engine.pruning.masking import MaskedWeight


def smaller(
    pruner: MaskHolder,
    dummy_input: Any,
    kwargs: Mapping[str, Any] | None,
    *,
    drop_constants: bool = False,
    graph_module: bool = False,
) -> nn.Module:
    """Make ``pruner``'s model smaller and detach the pruner; see ``Pruner.apply_speedup``."""
    if pruner._stack is None:
        raise speedup.SpeedupError("call compress() first: there are no masks")
    for wrapper in pruner.wrappers:
        if is_parametrized(wrapper.module):
            raise speedup.SpeedupError(
                f"{refusal(wrapper.name)}\n"
                "  with it, engine.speedup.speedup(model, dummy_input) makes the model smaller"
            )
        if is_computed(wrapper.module, Stage.QUANTIZE):
            raise speedup.SpeedupError(
                f'layer "{wrapper.name}" is quantized: speed up before quantizing'
            )
    example = pruner.dummy_input if dummy_input is None and kwargs is None else dummy_input
    if example is None and kwargs is None:
        raise speedup.SpeedupError(
            "speedup runs the model: give apply_speedup an example input, or the pruner dummy_input"
        )
    args = () if example is None else example
    if isinstance(example, Mapping):
        args, kwargs = (), example
    model = pruner.bound_model
    pruner.apply_masks()
    with _restored_on_error(pruner):
        if graph_module:
            model = speedup.as_graph_module(model, args, kwargs)
        if drop_constants:
            speedup.drop_constants(model, args, kwargs)
        report = speedup.speedup(
            model, args, kwargs, optimizer=pruner.optimizer, rules=_rules(pruner)
        )
    # The weights that masks removed are gone: there is nothing to put back.
    pruner.speedup_report = report
    pruner._trained = True
    pruner._changes.clear()
    pruner.unwrap()
    if hasattr(getattr(model, "config", None), "to_dict"):
        try:
            speedup.fit_config(model, args, kwargs)
        except speedup.SpeedupError as error:
            # The model runs all the same, and save_compressed takes any.
            if hasattr(model, "save_pretrained"):
                warnings.warn(f"from_pretrained will not load this model: {error}", stacklevel=3)
    if report.note:
        warnings.warn(report.note, stacklevel=3)
    return model


def _rules(pruner: MaskHolder) -> dict[Any, Any]:
    """Return what the plugins of the stack say of their own operators and modules."""
    assert pruner._stack is not None
    ask = pruner._stack.resolve("speedup_rules")
    answers = ask() if ask is not None else []
    rules: dict[Any, Any] = {}
    for answer in answers if isinstance(answers, list) else [answers]:
        rules |= answer
    return rules


@contextmanager
def _restored_on_error(pruner: MaskHolder) -> Iterator[None]:
    """Give layers their masked weights for what is inside; after an error all is as it was."""
    soft = [w for w in pruner.wrappers if is_computed(w.module, Stage.MASK)]
    changed = [p for p in pruner.bound_model.parameters() if p.dim() == 1]
    changed += [wrapper.weight for wrapper in soft]
    before = [(p, p.detach().clone()) for p in {id(p): p for p in changed}.values()]
    for wrapper in soft:
        plain_weight(wrapper.module, Stage.MASK)
        mask = wrapper.mask("weight")
        if mask is not None:
            with torch.no_grad():
                wrapper.weight.mul_(mask)
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for parameter, values in before:
                parameter.copy_(values)
        for wrapper in soft:
            compute_weight(wrapper.module, Stage.MASK, MaskedWeight(wrapper))
        raise
