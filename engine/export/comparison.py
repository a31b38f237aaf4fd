"""The last line of an export: the file's outputs beside the model's.

How far apart they may be is measured, not guessed. A runtime may round a value that lies between
two integers to the other one, and a deep network makes of one such step what it likes. So the
exported program is run again with every rounding moved by half a step, up, down and at random: what
that changes, the grids explain. A file that is further off is wrong.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from engine.errors import ExportError
from engine.export.integer_graph import QUANTIZE
from engine.export.plain_outputs import tensors

#: What ``compare`` may be.
CHOICES = ("error", "warn", "no")
#: Of the largest output: what sums in another order make of float32, in a deep network.
_FLOAT = 1e-3
#: Of what half a step at each rounding changes.
_MARGIN = 2.0
#: onnx's own evaluator is slow: models up to so many weights, where ONNX Runtime is not there.
_SMALL = 200_000


class Sample(NamedTuple):
    """One call: positional arguments and keywords, what the model returns, how far off is fine."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    expected: list[Tensor]
    explained: list[float]


def require_choice(compare: str) -> None:
    """Raise ExportError where ``compare`` is none of :data:`CHOICES`."""
    if compare not in CHOICES:
        raise ExportError(f"compare is {compare!r}\n  it may be {', '.join(map(repr, CHOICES))}")


def sample_of(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    program: ExportedProgram | None = None,
) -> Sample:
    """Return what ``model`` computes for one call, and how far a right file may be off.

    Args:
        model: in evaluation mode.
        args: positional arguments.
        kwargs: keyword arguments.
        program: what the file is a translation of, with its roundings; None: it has none.
    """
    with torch.no_grad():
        expected = [t.detach().cpu() for t in tensors(model(*args, **kwargs))]
        explained = [0.0] * len(expected)
        if program is not None:
            explained = _explained(program, [*args, *kwargs.values()], len(expected))
    return Sample(args, kwargs, expected, explained)


def compare_file(path: Path, samples: Sequence[Sample], weights: int, compare: str) -> None:
    """Run the ONNX file on the samples; raise, or warn, where it computes something else.

    Raises:
        ExportError: the file is further off than its grids explain, and ``compare`` is "error".

    Warns:
        UserWarning: the same, where ``compare`` is "warn"; or nothing here can run the file; or it
            is right, and the kernels that ONNX Runtime takes on this machine are not.
    """
    try:
        run = _runner(path, weights, optimized=True)
    except Exception as error:  # an operator or a type that no kernel here is for
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        warnings.warn(f"the ONNX file was not compared with the model: {line}", stacklevel=6)
        return
    if run is None:
        warnings.warn(
            "the ONNX file was not compared with the model: ONNX Runtime is not installed, and "
            f"onnx's own evaluator is too slow for {weights:,} weights\n"
            '  pip install onnxruntime, or compare="no"',
            stacklevel=6,
        )
        return
    fault = next((text for sample in samples if (text := _fault(run, sample))), "")
    if not fault:
        return
    plain = _runner(path, weights, optimized=False)
    if plain is not None and not any(_fault(plain, sample) for sample in samples):
        warnings.warn(
            f"the ONNX file is right, but ONNX Runtime's kernels on this machine are not: {fault}"
            "\n  without VNNI instructions products of 8 bits overflow: use 7 bits for weights",
            stacklevel=6,
        )
        return
    message = f"the ONNX file computes something else than the model: {fault}"
    if compare == "error":
        raise ExportError(f'{message}\n  no file was left; compare="warn" writes it all the same')
    warnings.warn(message, stacklevel=6)


def _fault(run: Callable[[list[Any]], list[Any]], sample: Sample) -> str:
    """Return what is wrong with the file's outputs for one sample; nothing if they are right."""
    inputs = [t for t in pytree.tree_leaves((sample.args, sample.kwargs)) if isinstance(t, Tensor)]
    found = [torch.as_tensor(value) for value in run([t.detach().cpu().numpy() for t in inputs])]
    return fault_of(found, sample)


def fault_of(found: Sequence[Tensor], sample: Sample) -> str:
    """Return what is wrong with the outputs that a file gave; nothing if they are right."""
    if len(found) != len(sample.expected):
        return f"it has {len(found)} outputs, the model {len(sample.expected)}"
    for place, (ours, theirs) in enumerate(zip(sample.expected, found, strict=True)):
        if ours.shape != theirs.shape:
            return f"output {place} is {list(theirs.shape)}, the model's {list(ours.shape)}"
        if not ours.is_floating_point() or not ours.numel():
            continue
        off, largest = largest_difference(ours, theirs), _largest(ours)
        rounding = max(_FLOAT, 64 * torch.finfo(ours.dtype).eps) * largest
        most = _MARGIN * sample.explained[place] + rounding + torch.finfo(torch.float32).tiny
        if not off <= most:
            scale = largest or 1.0
            return (
                f"output {place} is off by {off:.3g}, {off / scale:.1%} of its largest value; "
                f"rounding explains {most / scale:.1%}"
            )
    return ""


def largest_difference(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest difference; what is equal, such as two infinities, differs by nothing."""
    ours, theirs = ours.double(), theirs.double()
    same = (ours == theirs) | (ours.isnan() & theirs.isnan())
    off = (ours - theirs).abs().masked_fill(same, 0.0)
    return float(off.nan_to_num(nan=torch.inf).max()) if off.numel() else 0.0


def _largest(tensor: Tensor) -> float:
    finite = tensor.double().abs()
    finite = finite[finite.isfinite()]
    return float(finite.max()) if finite.numel() else 0.0


class _Moved(fx.Interpreter):
    """Runs a graph with what is rounded moved by ``move(tensor)`` steps before that."""

    def __init__(self, module: fx.GraphModule, move: Callable[[Tensor], Any]) -> None:
        super().__init__(module)
        self._move = move

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Run one operator."""
        if target is QUANTIZE:
            args = (args[0] + self._move(args[0]) * args[1], *args[1:])
        return super().call_function(target, args, kwargs)


def _explained(program: ExportedProgram, inputs: list[Any], count: int) -> list[float]:
    """Return how far half a step at each rounding moves each output."""
    module: Any = program.module(check_guards=False)
    if not any(node.target is QUANTIZE for node in module.graph.nodes):
        return [0.0] * count
    device = next((t.device for t in pytree.tree_leaves(inputs) if isinstance(t, Tensor)), None)
    random = torch.Generator(device or "cpu").manual_seed(0)

    def anywhere(tensor: Tensor) -> Tensor:
        return torch.rand(tensor.shape, generator=random, device=tensor.device) - 0.5

    moves: list[Callable[[Tensor], Any]] = [lambda t: 0.5, lambda t: -0.5, anywhere, anywhere]
    as_is = tensors(_Moved(module, lambda t: 0.0).run(*inputs))
    most = [0.0] * count
    for move in moves:
        for place, (moved, own) in enumerate(
            zip(tensors(_Moved(module, move).run(*inputs)), as_is, strict=True)
        ):
            if moved.is_floating_point() and moved.shape == own.shape:
                most[place] = max(most[place], largest_difference(own, moved))
    return most


def _runner(path: Path, weights: int, *, optimized: bool) -> Callable[[list[Any]], Any] | None:
    """Return what runs a file on arrays; None where nothing here does that in good time."""
    if importlib.util.find_spec("onnxruntime") is not None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 4
        # Or products with integer weights alone have their inputs rounded by the runtime.
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        if not optimized:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
        names = [each.name for each in session.get_inputs()]
        return lambda arrays: session.run(None, dict(zip(names, arrays, strict=True)))
    if weights > _SMALL:
        return None
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(str(path))
    return lambda arrays: evaluator.run(None, dict(zip(evaluator.input_names, arrays, strict=True)))
