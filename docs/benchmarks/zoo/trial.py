"""One model: masked, made smaller, compared with itself; and what came of it."""

from __future__ import annotations

import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from compare import Given, backward, difference, outputs, trains
from masking import mask_half, mask_rows, randomize
from torch import Tensor, nn

import engine.speedup
from engine.speedup.groups import plan

#: Outputs are equal when they differ by no more than this, relative to the largest.
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3}
#: A model counts as smaller when no more than this share of its parameters is left.
SHARE = 0.8

#: Draws inputs for a seed and a batch size.
Inputs = Callable[[int, int], Given]


def trial(make: Callable[[], nn.Module], inputs: Inputs, *, rows: bool = False) -> dict[str, Any]:
    """Return what came of one model: its outcome, the share of parameters left, reasons, seconds.

    ``outcome`` is one of

    - ok: equal outputs for other inputs and another batch size, backward and a forward in training
      mode run, and a fifth of the parameters is gone;
    - small: the same, but too much was kept;
    - failed: speedup raised an error;
    - WRONG: a smaller model came out whose outputs differ, or that does not run;
    - broken: the model does not run as it is, which says nothing about speedup.

    With ``rows`` each layer is masked by itself, and no share has to be gone.
    """
    result: dict[str, Any] = {"outcome": "broken"}
    try:
        model = make()
        randomize(model)
        example, others = inputs(0, 2), [inputs(1, 2)]
        outputs(model, others[0])
    except Exception as error:
        return {**result, "reason": where(error)}
    result["outcome"] = "failed"
    try:
        others.append(inputs(2, 3))
        outputs(model, others[1])
    except Exception:
        others.pop()
    trained = trains(model, others[0])
    try:
        started = time.process_time()
        result["channels"] = mask_rows(model) if rows else mask_half(model, *example)
        result["mask_s"] = round(time.process_time() - started, 2)
        expected = [outputs(model, given) for given in others]
        started = time.process_time()
        report = engine.speedup.speedup(model, *example)
        result["speedup_s"] = round(time.process_time() - started, 2)
    except Exception as error:
        return {**result, "reason": where(error)}
    result["share"] = round(report.parameters_after / max(1, report.parameters_before), 4)
    result["unknown"] = report.unknown
    if fault := _fault(model, others, expected, trained):
        return {**result, "outcome": "WRONG", "reason": fault}
    if result["share"] > SHARE and not rows:
        why = [reason for layer in report.layers if (reason := layer.kept)]
        kept = Counter(reason.partition(": ")[2] or reason for reason in why)
        result["kept"] = dict(kept.most_common(3))
        result["pinned"] = pinned(model, *example)
        return {**result, "outcome": "small", "reason": short(result)}
    return {**result, "outcome": "ok"}


def _fault(
    model: nn.Module, others: list[Given], expected: list[list[Tensor]], trained: bool
) -> str:
    """Return what is wrong with a smaller model, nothing if nothing is."""
    allowed = TOLERANCE[next(t.dtype for t in expected[0] if t.is_floating_point())]
    try:
        for given, wanted in zip(others, expected, strict=True):
            off = difference(outputs(model, given), wanted)
            if off > allowed:
                return f"outputs differ by {off:.2g}"
        backward(model, others[0])
    except Exception as error:
        return f"it does not run: {where(error)}"
    return "it does not run in training mode" if trained and not trains(model, others[0]) else ""


def short(result: Mapping[str, Any]) -> str:
    """Return the most frequent reasons of a model that stayed too large."""
    parts = [f"{share:.0%} {reason}" for reason, share in result["pinned"].items()]
    parts += [f"kept x{count}: {reason}" for reason, count in result["kept"].items()]
    parts += [f"no rule: {name} ({at})" for name, at in result["unknown"].items()]
    return "; ".join(parts)


def where(error: Exception) -> str:
    """Return class and message of an error with the last place in the engine that it came from."""
    lines = str(error).splitlines()
    text = f"{type(error).__name__}: {lines[0][:160] if lines else ''}"
    home = Path(engine.speedup.__file__).parents[1]
    frames = traceback.extract_tb(error.__traceback__)
    last = next((f for f in reversed(frames) if Path(f.filename).is_relative_to(home)), None)
    if last is None:
        return text
    return f"{text} [{Path(last.filename).relative_to(home)}:{last.lineno} {last.name}]"


def pinned(model: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> dict[str, float]:
    """Return the reasons that hold channels, with the share of all parameters that each concerns.

    A weight counts for the reason of each of its first two dimensions, half for each.
    """
    tracer = plan(model, args, kwargs)
    total = max(1, sum(p.numel() for p in model.parameters()))
    shares: Counter[str] = Counter()
    for tracked in tracer.parameters:
        dims = [d for d in tracked.dims() if d < 2]
        for dim in dims:
            labels = tracked.labels[dim]
            assert labels is not None
            for label in labels.tolist():
                reason = tracer.labels.reason(label)
                if reason is not None:
                    size = torch.Size(tracked.shape).numel() / tracked.shape[dim]
                    shares[reason] += size / len(dims) / total
    return {reason: round(share, 3) for reason, share in shares.most_common(5)}
