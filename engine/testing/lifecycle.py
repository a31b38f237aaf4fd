"""Checks of what stays the user's: the model, its copies, a checkpoint, several processes."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from engine.testing.apart import ask
from engine.testing.outcome import (
    ALGORITHM_ROLES,
    CheckSkippedError,
    check,
    require,
)
from engine.testing.subject import Subject, make_optimizer

#: Epochs of the run that is resumed halfway.
_ROUNDS = 4
#: Its end would wait for threads that wait for this one.
_kept_alive: dict[str, nn.Module] = {}


@check(*ALGORITHM_ROLES)
def detaching_leaves_the_model_as_found(subject: Subject) -> None:
    """unwrap() gives the model back as it was; after training, all but its values."""
    model = subject.model()
    before, values = _face(model), values_of(model)
    compressor = subject.attach(model)
    compressor.unwrap()
    _require_same_face(before, _face(model), "compress() and unwrap()")
    if "trainer" not in subject.user_functions():  # else compress() trains
        for name, value in values_of(model).items():
            require(_same(value, values[name]), f"{name} has other values after unwrap()")
    compressor = subject.at_rest(model)
    compressor.unwrap()
    _require_same_face(before, _face(model), "training and unwrap()")
    model(*subject.inputs())


@check(*ALGORITHM_ROLES)
def training_resumes_bit_exactly(subject: Subject) -> None:
    """A run that was saved halfway and loaded into a fresh model ends as one that was not."""
    resume(subject)


def resume(subject: Subject, extensions: Callable[[], list[object]] = list) -> None:
    """Train in one go, and with a checkpoint halfway; require that both end alike.

    Args:
        subject: the algorithm.
        extensions: makes the extensions of each of the two runs.
    """
    rounds, batches = subject.rounds(at_least=_ROUNDS), subject.batches()
    half = rounds // 2
    model = subject.model()
    optimizer = make_optimizer(model)
    compressor = subject.attach(model, optimizer, extensions=extensions())
    subject.train(compressor, optimizer, range(half), batches=batches)
    subject.calibrate(compressor)
    saved = _through_a_file([model.state_dict(), optimizer.state_dict(), compressor.state_dict()])
    subject.train(compressor, optimizer, range(half, rounds), batches=batches)

    fresh = subject.model(seed=1)
    optimizer = make_optimizer(fresh)
    resumed = subject.attach(fresh, optimizer, extensions=extensions())
    resumed.load_model_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    resumed.load_state_dict(saved[2])
    subject.train(resumed, optimizer, range(half, rounds), batches=batches)
    for name, value in values_of(model).items():
        require(
            _same(value, values_of(fresh)[name]),
            f"{name} differs after {rounds} epochs, of which the first {half} were loaded",
        )
    kept, own = _flat(resumed.state_dict()), _flat(compressor.state_dict())
    for place, value in own.items():
        require(_same(value, kept.get(place)), f"{place} of state_dict() differs after resuming")
    x = subject.inputs(99)
    require(_same(_evaluated(model, x), _evaluated(fresh, x)), "outputs differ after resuming")


@check(*ALGORITHM_ROLES)
def copies_are_models_of_their_own(subject: Subject) -> None:
    """A deepcopy and a pickle compute the same, and training them changes nothing here."""
    model = subject.model()
    compressor = subject.at_rest(model)
    x = subject.inputs(99)
    expected, state = _evaluated(model, x), _flat(compressor.state_dict())
    values = values_of(model)
    for how, twin in (
        ("deepcopy", copy.deepcopy(model)),
        ("pickle", pickle.loads(pickle.dumps(model))),
    ):
        require(_same(_evaluated(twin, x), expected), f"a {how} of the model computes otherwise")
        optimizer = make_optimizer(twin.train())
        for _ in range(2):
            optimizer.zero_grad()
            twin(*x).square().sum().backward()
            optimizer.step()
        for name, value in values_of(model).items():
            require(_same(value, values[name]), f"training a {how} has changed {name}")
        for place, value in _flat(compressor.state_dict()).items():
            require(_same(value, state[place]), f"training a {how} has changed {place}")


@check(*ALGORITHM_ROLES)
def it_trains_in_distributed_data_parallel(subject: Subject) -> None:
    """Wrapped in DistributedDataParallel, of one process, the model trains as it does without."""
    if not (torch.distributed.is_available() and torch.distributed.is_gloo_available()):
        raise CheckSkippedError("this torch has no gloo")
    # Apart, since a process group is the whole process's, and taking it down can block for ever.
    plugin = subject.plugin
    answer = ask(
        {
            "call": f"{__name__}:train_in_parallel",
            "plugin": plugin.qualified_name,
            "group": plugin.group,
        }
    )
    if answer["skipped"]:
        raise CheckSkippedError(answer["error"])
    require(not answer["error"], answer["error"])


def train_in_parallel(subject: Subject) -> None:
    """Train with and without DistributedDataParallel, and require that both end alike.

    The process group stays: the process is meant to end without tidying up.
    """
    alone, model = subject.model(), subject.model()
    subject.at_rest(alone)
    store: Any = torch.distributed.HashStore()  # type: ignore[attr-defined]
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    parallel = _kept_alive.setdefault("parallel", nn.parallel.DistributedDataParallel(model))
    optimizer = make_optimizer(model)
    compressor = subject.attach(model, optimizer)
    rounds, batches = range(subject.rounds()), subject.batches()
    subject.train(compressor, optimizer, rounds, batches=batches, forward=parallel)
    subject.calibrate(compressor)
    for name, value in values_of(alone).items():
        # Buckets add gradients in another order.
        close = torch.allclose(value.double(), values_of(model)[name].double(), atol=1e-4)
        require(close, f"{name} is trained otherwise than without it")


@check(*ALGORITHM_ROLES)
def it_compiles_as_one_graph(subject: Subject) -> None:
    """torch.compile(fullgraph=True) takes the model and computes the same."""
    model = subject.model()
    subject.at_rest(model)
    x = subject.inputs(99)
    expected = _evaluated(model, x)
    torch._dynamo.reset()
    try:
        compiled: Any = torch.compile(model, fullgraph=True, backend="eager")
        output = _evaluated(compiled, x)
    finally:
        torch._dynamo.reset()
    require(torch.allclose(output, expected, atol=1e-5), "the compiled model computes otherwise")


def _face(model: nn.Module) -> dict[str, Any]:
    """Return all that a user sees of a model beside its values."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    modules = dict(model.named_modules())
    return {
        "the order of modules": list(modules),
        "the classes of modules": {name: type(module) for name, module in modules.items()},
        "the attributes of modules": {name: sorted(vars(m)) for name, m in modules.items()},
        "forward methods": {name: "forward" in vars(m) for name, m in modules.items()},
        "hooks": {name: [len(getattr(m, h)) for h in hooks] for name, m in modules.items()},
        "training flags": {name: module.training for name, module in modules.items()},
        "parameters": {name: id(parameter) for name, parameter in model.named_parameters()},
        "requires_grad": {name: p.requires_grad for name, p in model.named_parameters()},
        "keys of state_dict()": list(model.state_dict()),
        "repr()": repr(model),
    }


def _require_same_face(before: dict[str, Any], after: dict[str, Any], moment: str) -> None:
    for what, value in before.items():
        other = after[what]
        where = ""
        if isinstance(value, dict) and isinstance(other, dict):
            places = [k for k in {**value, **other} if value.get(k) != other.get(k)]
            where = f" of {', '.join(repr(place) for place in places[:3])}"
        require(value == other, f"{what}{where} differ after {moment}")


def values_of(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of all values of ``state_dict()``."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


@torch.no_grad()
def _evaluated(model: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        output: Tensor = model(*inputs)
        return output.clone()
    finally:
        for module in training:
            module.training = True


def _flat(state: Any, place: str = "") -> dict[str, Any]:
    """Return the leaves of nested containers by their places."""
    if isinstance(state, dict):
        items = [(f"{place}/{key}", value) for key, value in state.items()]
    elif isinstance(state, (list, tuple)):
        items = [(f"{place}/{index}", value) for index, value in enumerate(state)]
    else:
        return {place: state}
    return {at: leaf for key, value in items for at, leaf in _flat(value, key).items()}


def _same(first: Any, second: Any) -> bool:
    """Return whether two values are equal, bit for bit; NaN equals NaN."""
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        if first.shape != second.shape or first.dtype != second.dtype:
            return False
        return bool(((first == second) | ((first != first) & (second != second))).all())
    return bool(first == second)


def _through_a_file(value: Any) -> Any:
    stream = io.BytesIO()
    torch.save(value, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=True)
