"""Checks of what a pruner removes."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import torch
from torch import Tensor, nn

from engine.attach.compressor import Compressor
from engine.attach.wrapper import Wrapper
from engine.errors import EngineError
from engine.hookspecs import hookimpl
from engine.testing.counting import removed, weight_masks
from engine.testing.networks import residual_net
from engine.testing.outcome import PRUNER, SCHEDULE, SEARCH, CheckSkippedError, check, require
from engine.testing.subject import Subject, make_optimizer


class _Witness:
    """Keeps what the algorithm itself returned, before the engine made masks of it."""

    def __init__(self) -> None:
        self.seen: list[tuple[Wrapper, Any]] = []

    @hookimpl(wrapper=True)
    def calc_mask(self, wrapper: Wrapper) -> Generator[None, Any, Any]:
        masks = yield
        if masks is not None:
            self.seen.append((wrapper, masks))
        return masks


class _OneShotWitness:
    """The same of an algorithm that makes its masks in ``calibrate_layer``."""

    def __init__(self) -> None:
        self.seen: list[tuple[Wrapper, Any]] = []

    @hookimpl(wrapper=True)
    def calibrate_layer(self, wrapper: Wrapper) -> Generator[None, Any, Any]:
        result = yield
        if result is not None and result.mask is not None:
            self.seen.append((wrapper, result.mask))
        return result


class _Asks:
    """Asks for one fraction of every layer, whatever the configuration says."""

    def __init__(self, sparsity: float) -> None:
        self.fraction = sparsity

    @hookimpl(wrapper=True)
    def sparsity(self) -> Generator[None, Any, float]:
        yield
        return self.fraction


@check(PRUNER, SCHEDULE, SEARCH)
def masks_fit_their_weights(subject: Subject) -> None:
    """Masks are zeros and ones, of the weight's shape and on its device."""
    witness = _OneShotWitness() if subject.is_one_shot else _Witness()
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    for device in devices:
        model = subject.model().to(device)
        compressor = subject.attach(model, extensions=[witness])
        if device == "cpu":
            optimizer = make_optimizer(model)
            subject.train(compressor, optimizer, range(subject.rounds()), batches=subject.batches())
    require(witness.seen, "no mask was returned in the whole training")
    for wrapper, masks in witness.seen:
        named = {"weight_mask": masks} if isinstance(masks, Tensor) else dict(masks)
        for name, parameter in (("weight_mask", wrapper.weight), ("bias_mask", wrapper.bias)):
            mask = named.get(name)
            if mask is None or parameter is None:
                continue
            place = f'{name} of layer "{wrapper.name}"'
            require(
                mask.shape == parameter.shape,
                f"{place} has shape {tuple(mask.shape)}, the parameter {tuple(parameter.shape)}",
            )
            require(
                mask.device == parameter.device,
                f"{place} is on {mask.device}, the parameter on {parameter.device}",
            )
            require(
                bool(((mask == 0) | (mask == 1)).all()), f"{place} is neither 0 nor 1 somewhere"
            )


@check(PRUNER)
def removes_what_was_asked(subject: Subject) -> None:
    """What is removed is the asked fraction, a unit up or down; or, where it is found, is told."""
    if subject.plugin.finds_sparsity:
        _require_told(subject.at_rest(subject.model()))
        return
    for sparsity in (0.25, 0.5, 0.75):
        _require_removed(subject.at_rest(subject.model(), sparsity=sparsity), sparsity)


@check(PRUNER)
def zero_sparsity_removes_nothing(subject: Subject) -> None:
    """A sparsity of 0 leaves every weight where it is."""
    _skip_found(subject)
    model, twin = subject.model(), subject.model()
    subject.attach(model, sparsity=0.0)
    for name, value in twin.state_dict().items():
        require(torch.equal(model.state_dict()[name], value), f"{name} has changed")
    compressor = subject.at_rest(subject.model(), sparsity=0.0)
    require(removed(compressor).units == 0, f"{removed(compressor)} are removed")


@check(PRUNER)
def full_sparsity_is_survived(subject: Subject) -> str:
    """A sparsity of 1 removes all but at most one unit of each layer, and outputs stay finite."""
    _skip_found(subject)
    model = subject.model()
    compressor = subject.at_rest(model, extensions=[_Asks(1.0)])
    found = removed(compressor)
    require(found.is_about(1.0), f"{found} are removed")
    with torch.no_grad():
        require(model(*subject.inputs()).isfinite().all(), "outputs are not finite")
    return f"{found} removed"


@check(PRUNER)
def ties_do_not_overshoot(subject: Subject) -> None:
    """Where all weights are equal, not more and not less is removed than was asked."""
    _skip_found(subject)
    model = subject.model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.1)
    _require_removed(subject.at_rest(model), 0.5)


@check(PRUNER, SCHEDULE, SEARCH)
def one_channel_is_survived(subject: Subject) -> None:
    """Layers with a single filter and a single input are pruned without a fault."""
    if "model" in subject.hints:
        raise CheckSkippedError("the plugin brings its own model")
    model: nn.Module = residual_net(channels=1)
    try:
        compressor = subject.at_rest(model)
    except EngineError as refused:
        if subject.role != SEARCH:
            raise
        raise CheckSkippedError(f"it says why not: {refused}") from refused
    weight_masks(compressor)
    require(model(*subject.inputs()).isfinite().all(), "outputs are not finite")


@check(PRUNER, SCHEDULE, SEARCH)
def half_precision_is_survived(subject: Subject) -> None:
    """In bfloat16 and float16 masks have the weight's dtype and remove what was asked."""
    for dtype in (torch.bfloat16, torch.float16):
        model = subject.model().to(dtype)
        compressor = subject.at_rest(model)
        for name, mask in weight_masks(compressor).items():
            require(mask.dtype == dtype, f'the mask of layer "{name}" is {mask.dtype}')
        # A search is asked for a fraction of the whole, not of each layer.
        if subject.role != SEARCH and not subject.plugin.finds_sparsity:
            _require_removed(compressor, 0.5, f" in {dtype}")
        with torch.no_grad():
            output = model(*subject.inputs(like=model))
        require(output.dtype == dtype, f"outputs are {output.dtype} in a model of {dtype}")
        require(output.isfinite().all(), f"outputs are not finite in {dtype}")


@check(PRUNER, SCHEDULE, SEARCH)
def the_same_seed_gives_the_same_masks(subject: Subject) -> None:
    """Two trainings from one seed end with the same masks, bit for bit."""
    first, second = (weight_masks(subject.at_rest(subject.model())) for _ in range(2))
    for name, mask in first.items():
        require(torch.equal(mask, second[name]), f'layer "{name}" has other masks the second time')


@check(PRUNER, SCHEDULE, SEARCH)
def removed_weights_stay_removed(subject: Subject) -> None:
    """After an optimizer step the layer computes with zeros wherever its mask is zero."""
    model = subject.model()
    compressor = subject.at_rest(model)
    for wrapper in compressor.get_modules_wrapper():
        mask = wrapper.mask("weight")
        assert mask is not None
        weight: Any = wrapper.module.weight
        alive = int(torch.count_nonzero(weight.detach()[mask == 0]))
        require(alive == 0, f'layer "{wrapper.name}": {alive} removed weights are not zero')


@check(PRUNER, SCHEDULE, SEARCH)
def gradients_reach_what_is_kept(subject: Subject) -> None:
    """Gradients are finite, and kept weights of every layer get one."""
    model = subject.model()
    optimizer = make_optimizer(model)
    compressor = subject.attach(model, optimizer)
    rounds = subject.rounds()
    subject.train(compressor, optimizer, range(rounds), batches=subject.batches())
    for name, parameter in model.named_parameters():
        require(
            parameter.grad is not None and parameter.grad.isfinite().all(),
            f"the gradient of {name} is missing or not finite",
        )
    for wrapper in compressor.get_modules_wrapper():
        mask, gradient = wrapper.mask("weight"), wrapper.weight.grad
        assert mask is not None
        assert gradient is not None
        if bool((mask != 0).any()):
            require(gradient[mask != 0].any(), f'no gradient reaches layer "{wrapper.name}"')


def _skip_found(subject: Subject) -> None:
    if subject.plugin.finds_sparsity:
        raise CheckSkippedError("its sparsity is an outcome: it is asked for none")


def _require_told(compressor: Compressor) -> None:
    """Require that something is removed, and that wrappers say how much."""
    require(removed(compressor).units > 0, "nothing is removed")
    for wrapper in compressor.get_modules_wrapper():
        mask = wrapper.mask("weight")
        assert mask is not None
        share = float((mask == 0).float().mean())
        require(
            wrapper.sparsity is not None and abs(wrapper.sparsity - share) < 1e-4,
            f'layer "{wrapper.name}" says {wrapper.sparsity}, its mask removes {share}',
        )


def _require_removed(compressor: Compressor, sparsity: float, where: str = "") -> None:
    found = removed(compressor)
    require(
        found.is_about(sparsity), f"{found} are removed{where}, a fraction of {sparsity} was asked"
    )
