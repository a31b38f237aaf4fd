"""What a script says of the model that it made: for the report of an experiment."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from engine.errors import EngineError
from engine.files import write_whole
from engine.files.job import report_file

if TYPE_CHECKING:
    from torch import nn

    from engine.attach.compressor import Compressor

_WHOLE = ("params", "nonzero_params", "flops", "masked_flops", "file_bytes", "latency_seconds")


def report_model(
    model: nn.Module,
    *compressors: Compressor,
    before: nn.Module | None = None,
    dummy_input: Any = None,
    measures: Mapping[str, tuple[float, float]] | None = None,
    latency_runs: int = 30,
) -> dict[str, Any]:
    """Return what became of a model, layer by layer and in all, and tell it the runner, if any.

    Args:
        model: the compressed model; left as found.
        *compressors: compressors that are still attached to it: they know bits, and what the
            packed file takes.
        before: the model as it was, such as a ``copy.deepcopy`` from before; without it there are
            no values to compare with.
        dummy_input: example inputs, one tensor or a tuple of positional arguments. Without them
            operations are not counted and no time is taken.
        measures: what the script measured itself, before and after:
            ``{"accuracy": (98.2, 97.9)}``.
        latency_runs: forward passes that are timed, the two models in turn.

    Returns:
        ``totals`` and ``measures`` map a name to its values ``before`` and ``after`` (None where
        unknown): parameters, those that are not zero, FLOPs (2 per multiply-add, of the whole
        batch), those of weights that are not zero, bytes of the file, seconds of one forward pass
        (the median). ``layers`` has a mapping for each layer with a weight.

    Raises:
        EngineError: a measure is no pair of finite numbers, the model does not run on
            ``dummy_input``, or the file cannot be written.
    """
    totals: dict[str, dict[str, Any]] = {key: {"before": None, "after": None} for key in _WHOLE}
    for when, each, own in (("before", before, ()), ("after", model, compressors)):
        if each is not None:
            for key, value in _totals(each, own, dummy_input).items():
                totals[key][when] = value
    if dummy_input is not None:
        times = _latency(before, model, dummy_input, latency_runs)
        totals["latency_seconds"] = dict(zip(("before", "after"), times, strict=True))
    report = {
        "totals": totals,
        "measures": {name: _pair(name, given) for name, given in (measures or {}).items()},
        "layers": _layers(model, compressors, before),
        "versions": _versions(),
    }
    path = report_file()
    if path is not None:
        text = json.dumps(report, indent=1, allow_nan=False)
        write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return report


def _totals(
    model: nn.Module, compressors: tuple[Compressor, ...], dummy_input: Any
) -> dict[str, int]:
    from engine.analysis import count_flops_params, model_size
    from engine.analysis.layer_table import layer_table

    parameters = list(model.parameters())
    result = {
        "params": sum(p.numel() for p in parameters),
        "nonzero_params": sum(int(p.detach().count_nonzero()) for p in parameters),
        "file_bytes": layer_table(model, *compressors).bytes_after
        if compressors
        else model_size(model).file,
    }
    if dummy_input is not None:
        count = count_flops_params(model, dummy_input)
        result |= {"flops": count.flops, "masked_flops": count.masked_flops}
    return result


def _latency(
    before: nn.Module | None, model: nn.Module, dummy_input: Any, runs: int
) -> tuple[float | None, float]:
    from engine.analysis import compare_latency, measure_latency

    if before is None:
        return None, measure_latency(model, dummy_input, runs=runs).median
    both = compare_latency(before, model, dummy_input, runs=runs)
    return both.a.median, both.b.median


def _layers(
    model: nn.Module, compressors: tuple[Compressor, ...], before: nn.Module | None
) -> list[dict[str, Any]]:
    """Return a mapping for each layer of the original model, or of ``model`` without one.

    ``sparsity`` is the fraction of the original weights that are zero or gone.
    """
    from engine.analysis.layer_table import layer_table

    now = {row.name: row for row in layer_table(model, *compressors).rows}
    then = now if before is None else {row.name: row for row in layer_table(before).rows}
    result = []
    for name, old in then.items():
        new = now.get(name)
        kept = new.kept if new is not None else 0
        result.append(
            {
                "name": name,
                "type": old.type,
                "shape_before": list(old.shape),
                "shape_after": list(new.shape) if new is not None else None,
                "weights_before": old.total,
                "weights_after": kept,
                "sparsity": 1 - kept / old.total if old.total else 0.0,
                "weight_bits": new.weight_bits if new is not None else None,
                "activation_bits": new.activation_bits if new is not None else None,
            }
        )
    return result


def _pair(name: str, given: Any) -> dict[str, float]:
    try:
        before, after = map(float, given)
    except (TypeError, ValueError) as error:
        raise EngineError(
            f'report_model: measures["{name}"] is {given!r}, not two numbers (before, after)'
        ) from error
    if not (math.isfinite(before) and math.isfinite(after)):
        raise EngineError(f'report_model: measures["{name}"] is not finite: {given!r}')
    return {"before": before, "after": after}


def _versions() -> dict[str, str]:
    import platform

    import torch

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": str(torch.get_num_threads()),
        "machine": platform.machine(),
    }
