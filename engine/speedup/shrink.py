"""From zeros to shapes: trace, decide, rewrite, verify; or leave the model as it was."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from engine.errors import EngineError
from engine.speedup import compare, recipe
from engine.speedup.evaluation import evaluation
from engine.speedup.replay import Inputs, Recording, Replay
from engine.speedup.report import LayerChange, SpeedupReport
from engine.speedup.rewrite import Slice, Snapshot, rewrite, update_optimizer
from engine.speedup.rules import RuleLike, all_rules
from engine.speedup.sizes import give_up, set_sizes
from engine.speedup.solve import decide, removed
from engine.speedup.tracer import Tracer
from engine.speedup.zeros import is_zero


class SpeedupError(EngineError):
    """The model cannot be made smaller as asked; it is as it was."""


def speedup(
    model: nn.Module,
    args: Any,
    kwargs: Mapping[str, Any] | None = None,
    *,
    optimizer: Optimizer | None = None,
    rules: Mapping[str | type[nn.Module], RuleLike] | None = None,
) -> SpeedupReport:
    """Remove what zero weights make dead from ``model``, in place; its outputs stay the same.

    Channels, features and heads whose weights are zero go, everywhere they flow. What they would
    still have contributed is folded into what follows where that is exact; otherwise they stay and
    the report says why. Outputs are those of evaluation mode.

    Args:
        model: a model whose masks have been multiplied into its weights.
        args: example inputs: one tensor, or a tuple of positional arguments.
        kwargs: keyword arguments.
        optimizer: is given the new parameters, its state sliced like them.
        rules: how channels flow through operators and modules of your own; see the hook
            ``speedup_rules``.

    Raises:
        SpeedupError: the model does not run on the example, or no smaller model with equal outputs
            was found; the model is unchanged.
    """
    known, zeros = all_rules(rules)
    refuse_compiled(model)
    positional = tuple(args) if isinstance(args, tuple | list) else (args,)
    named = dict(kwargs or {})
    with evaluation(model):
        check = _other_values(positional), _other_values(named)
        snapshot = Snapshot(model)
        try:
            with torch.no_grad():
                expected = compare.run(model, check)
        except Exception as error:
            raise SpeedupError(
                f"the model does not run on the example inputs: {type(error).__name__}: {error}"
            ) from error
        tracer = Tracer(model, known, zeros=zeros)
        try:
            tracer.run(*compare.copied((positional, named)))
        except Exception as error:
            raise SpeedupError(
                f"the model cannot be followed while it runs: {type(error).__name__}: {error}"
            ) from error
        if _unused(model, tracer):
            with _containers_training(model), suppress(Exception):
                # Heads that only run in training: they read channels, too.
                tracer.run(*compare.copied((positional, named)))
        checked: set[str] = set()
        recording: Recording | None = None
        tried = False
        while True:
            try:
                done = rewrite(tracer, decide(tracer), snapshot)
                changed = set_sizes(model, tracer, checked)
                difference, culprit = _differs(
                    model, tracer, check, expected, recording, watched=tried
                )
                tried = True
            except BaseException:
                snapshot.restore()
                raise
            if difference is None:
                if optimizer is not None:
                    update_optimizer(optimizer, done)
                recipe.remember(model, snapshot)
                return _report(snapshot, model, tracer, done)
            snapshot.restore()
            if culprit is None and difference.failed_in is None and recording is None:
                # It runs and is wrong: the values will tell from where on.
                recording = Recording(model, tracer, check)
                continue
            if difference.failed_in is not None and _unseen(model, tracer, difference.failed_in):
                # The example took another branch than these values: both must be known.
                tracer.run(*compare.copied(check))
                continue
            if not give_up(model, tracer, difference, culprit, changed, checked):
                raise SpeedupError(
                    f"no smaller model with the same outputs was found: {difference.message}"
                )


def _differs(
    model: nn.Module,
    tracer: Tracer,
    check: Inputs,
    expected: Any,
    recording: Recording | None,
    *,
    watched: bool,
) -> tuple[compare.Difference | None, int | None]:
    """Return how the smaller model differs, and the number of the call where that begins.

    Watching costs time, and a run of its own is needed where that is done only afterwards: a model
    is watched at once (``watched``) where an earlier attempt has failed.
    """
    replay = Replay(model, tracer, recording)
    if not watched:
        difference = compare.difference(model, check, expected)
        if difference is None:
            return None, None
        replay.run(check)
    else:
        with replay.watching():
            difference = compare.difference(model, check, expected, replay)
        if difference is not None and difference.failed_in is not None:
            replay.blame_coming()
    if difference is not None and difference.failed_in is not None:
        difference = difference._replace(failed_in=replay.path)
    return difference, replay.culprit


def refuse_compiled(model: nn.Module) -> None:
    """Raise SpeedupError for a model that is not run by Python any more."""
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule) or "_orig_mod" in module._modules:
            raise SpeedupError(
                f'"{name or "the model"}" is a {type(module).__name__}, which cannot be followed; '
                "speed up the model that it was made from, then script or compile that"
            )


def _unused(model: nn.Module, tracer: Tracer) -> bool:
    """Return whether some module has parameters that the traced run did not use."""
    used = _used(tracer)
    return any(_has_parameters(m) and id(m) not in used for m in model.modules())


def _used(tracer: Tracer) -> set[int]:
    """Return the ids of the modules whose parameters or buffers were used."""
    return {id(slot.module) for tracked in tracer.parameters for slot in tracked.slots}


def _has_parameters(module: nn.Module) -> bool:
    return any(p is not None for p in module._parameters.values())


@contextmanager
def _containers_training(model: nn.Module) -> Iterator[None]:
    """Let modules that only call others believe that they train; norms and dropout do not."""
    containers = [
        module
        for module in model.modules()
        if next(module.children(), None) is not None
        and not any(True for _ in module.parameters(recurse=False))
        and not any(True for _ in module.buffers(recurse=False))
    ]
    for module in containers:
        module.training = True
    try:
        yield
    finally:
        for module in containers:
            module.training = False


def _unseen(model: nn.Module, tracer: Tracer, path: str) -> bool:
    """Return whether a module has parameters that were not used when the model was traced."""
    module = model.get_submodule(path)
    return _has_parameters(module) and id(module) not in _used(tracer)


def _report(
    snapshot: Snapshot, model: nn.Module, tracer: Tracer, done: dict[int, tuple[Tensor, Slice]]
) -> SpeedupReport:
    names = {id(module): name for name, module in model.named_modules()}
    before = after = 0
    layers = []
    seen: set[int] = set()
    known = {(id(s.module), s.name): t for t in tracer.parameters for s in t.slots}
    for state in snapshot.modules:
        module = state.module
        for name, old in state.parameters.items():
            if old is None or id(old) in seen:
                continue
            seen.add(id(old))
            new = done[id(old)][0] if id(old) in done else old
            before, after = before + old.numel(), after + new.numel()
            if name != "weight" or old.dim() < 2:
                continue
            tracked = known.get((id(module), name))
            layers.append(
                LayerChange(
                    names[id(module)],
                    type(module).__name__,
                    tuple(old.shape),
                    tuple(new.shape),
                    "" if tracked is None else _why_kept(tracer, tracked, old),
                )
            )
    return SpeedupReport(tuple(layers), before, after, dict(tracer.unknown))


def _why_kept(tracer: Tracer, tracked: Any, weight: Tensor) -> str:
    """Return why filters whose weights are all zero stayed, with their number."""
    labels = tracked.labels[0]
    stays = None if labels is None else ~removed(tracer, labels)
    if labels is None or stays is None or not bool(stays.any()):
        return ""
    zero = is_zero(weight, 0)
    kept = labels[zero & stays]
    if not len(kept):
        return ""
    return f"{len(kept)} of {int(zero.sum())}: {tracer.labels.reason(int(kept[0]))}"


def _other_values(value: Any) -> Any:
    """Return inputs of the same shapes with other values where they are floating point."""
    return tree_map(
        lambda t: torch.randn_like(t) if isinstance(t, Tensor) and t.is_floating_point() else t,
        value,
    )
