"""Checks of what becomes of a compressed model: speedup, files, ONNX, and the cost of a step."""

from __future__ import annotations

import importlib.util
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine.errors import EngineError, ExportError
from engine.export import apply_masks, load_quantized
from engine.pruning.pruner import Pruner
from engine.testing.networks import perceptron
from engine.testing.outcome import (
    ALGORITHM_ROLES,
    PRUNER,
    QUANTIZER,
    SCHEDULE,
    SEARCH,
    CheckSkippedError,
    check,
    require,
)
from engine.testing.subject import Subject, loss_of, make_optimizer

#: A step may cost this many bare steps of a tiny network, where bookkeeping shows most.
_LIMIT = 20.0
_STEPS_PER_ROUND = 4
_ROUNDS = 7


@check(PRUNER, SCHEDULE, SEARCH)
def speedup_is_exact(subject: Subject) -> str:
    """apply_speedup() gives a model with the masked model's outputs."""
    model = subject.model().double()
    compressor = subject.at_rest(model)
    assert isinstance(compressor, Pruner)
    x = subject.inputs(99, model)
    with torch.no_grad():
        expected = model.eval()(*x)
        before = sum(p.numel() for p in model.parameters())
        smaller = compressor.apply_speedup(x)
        output = smaller(*x)
    error = float((output - expected).abs().max())
    require(
        torch.allclose(output, expected, rtol=1e-9, atol=1e-10),
        f"outputs differ by up to {error:.2g} from the masked model's",
    )
    return f"{before} parameters, then {sum(p.numel() for p in smaller.parameters())}"


@check(PRUNER, SCHEDULE, SEARCH)
def exported_files_give_the_same_outputs(subject: Subject) -> None:
    """The files of export_model(), loaded into a fresh model, compute what the masked one does."""
    model = subject.model()
    compressor: Any = subject.at_rest(model)
    x = subject.inputs(99)
    fresh = subject.model(seed=1)
    with tempfile.TemporaryDirectory() as folder:
        compressor.export_model(f"{folder}/model.pth", f"{folder}/mask.pth")
        fresh.load_state_dict(torch.load(f"{folder}/model.pth", weights_only=True))
        apply_masks(fresh, f"{folder}/mask.pth")
    require(torch.equal(_outputs(model, x), _outputs(fresh, x)), "outputs differ")


@check(QUANTIZER)
def exported_weights_are_the_quantized_ones(subject: Subject) -> None:
    """The file of export_model() gives the fake-quantized weights back, or says why it cannot."""
    model = subject.model()
    compressor: Any = subject.at_rest(model)
    fresh = subject.model(seed=1)
    with tempfile.TemporaryDirectory() as folder:
        try:
            compressor.export_model(f"{folder}/model.pth", f"{folder}/calibration.json")
        except ExportError as refused:
            raise CheckSkippedError(f"it says why not: {refused}") from refused
        load_quantized(fresh, f"{folder}/model.pth")
    modules = dict(fresh.named_modules())
    for wrapper in compressor.get_modules_wrapper():
        if "weight" in wrapper.config["quant_types"]:
            weight: Any = wrapper.module.weight
            loaded: Any = modules[wrapper.name].weight
            require(torch.equal(weight, loaded), f'the weight of layer "{wrapper.name}" differs')


@check(*ALGORITHM_ROLES)
def onnx_gives_the_same_outputs(subject: Subject) -> None:
    """The ONNX file of export_model() computes what the model does, or it says why it cannot."""
    missing = [
        name
        for name in ("onnx", "onnxscript", "onnxruntime")
        if importlib.util.find_spec(name) is None
    ]
    if missing:
        raise CheckSkippedError(f"{' and '.join(missing)} cannot be found")
    import onnxruntime

    model = subject.model()
    compressor: Any = subject.at_rest(model)
    x = subject.inputs(99)
    if len(x) != 1:
        raise CheckSkippedError("the model has several inputs")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        try:
            compressor.export_model(
                f"{folder}/model.pth", onnx_path=path, input_shape=list(x[0].shape)
            )
        except ExportError as refused:
            raise CheckSkippedError(f"it says why not: {refused}") from refused
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
        (output,) = session.run(None, {session.get_inputs()[0].name: x[0].numpy()})
    error = float((torch.from_numpy(output) - _outputs(model, x)).abs().max())
    # A value that lies between two steps may be rounded to either, by kernels of another order.
    steps = [
        float(getattr(wrapper, f"{key}_scale").max())
        for wrapper in compressor.get_modules_wrapper()
        for key in wrapper.grids
        if key != "weight"
    ]
    limit = max([1e-4, *steps])
    require(error < limit, f"outputs differ by up to {error:.2g}")


@check(PRUNER, QUANTIZER, SCHEDULE)
def a_step_is_not_much_dearer(subject: Subject) -> str:
    """A training step of a tiny network costs less than 20 bare ones; how much is reported."""
    bare, own = perceptron(), perceptron()
    x = torch.randn(64, 64)
    try:
        subject.attach(own, batches=[(x,)])
    except EngineError as error:
        raise CheckSkippedError(f"it does not take a perceptron: {error}") from error
    ratios = []
    optimizers = [make_optimizer(model) for model in (bare, own)]
    for _ in range(_ROUNDS):
        first, second = (
            _seconds(model, optimizer, x)
            for model, optimizer in zip((bare, own), optimizers, strict=True)
        )
        ratios.append(second / first)
    ratio = statistics.median(ratios[1:])
    require(ratio < _LIMIT, f"{ratio:.1f} times the bare step")
    return f"{ratio:.2f} times the bare step"


def _seconds(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> float:
    started = time.process_time()
    for _ in range(_STEPS_PER_ROUND):
        optimizer.zero_grad()
        loss_of(model(x)).backward()
        optimizer.step()
    return time.process_time() - started


@torch.no_grad()
def _outputs(model: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    outputs: Tensor = model.eval()(*inputs)
    return outputs
