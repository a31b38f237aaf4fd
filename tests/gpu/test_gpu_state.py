"""States cross devices, models move, and a run that was saved on the device goes on there."""

import copy
import io
import pickle

import pretended
import pytest
import torch
from runs import (
    ALGORITHMS,
    CPU,
    PRUNERS,
    assert_alike,
    assert_masked,
    assert_on,
    at_rest,
    moving,
    standing,
    subject,
    tensors,
    train,
)
from torch import nn

from engine.testing.lifecycle import resume


def saved(state: object, map_location: object) -> dict:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True, map_location=map_location)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_state_goes_to_the_cpu_and_back(name: str, device: torch.device) -> None:
    of = subject(name)
    model, compressor, _ = at_rest(of, device)
    here = to_cpu(compressor.state_dict()), to_cpu(model.state_dict())
    other = of.model()
    there = of.attach(other, moving(other))
    there.load_model_state_dict(here[1])
    there.load_state_dict(here[0])
    assert_alike(there, compressor)
    assert_on(there, CPU)
    again = of.model().to(device)
    back = of.attach(again, moving(again))
    back.load_model_state_dict(there.bound_model.state_dict())
    back.load_state_dict(there.state_dict())
    assert_alike(back, compressor)
    assert_on(back, next(again.parameters()).device)
    x = of.inputs(7, model)
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(*x), model.eval()(*x))


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_state_is_read_from_a_file_onto_any_device(name: str, real_device: torch.device) -> None:
    of = subject(name)
    model, compressor, _ = at_rest(of, real_device)
    for place in (CPU, real_device):
        other = of.model().to(place)
        there = of.attach(other, moving(other))
        # The file's tensors stay on the other device than the model.
        elsewhere = real_device if place == CPU else CPU
        there.load_model_state_dict(saved(model.state_dict(), elsewhere))
        there.load_state_dict(saved(compressor.state_dict(), elsewhere))
        assert_alike(there, compressor)
        assert_on(there, next(other.parameters()).device)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_training_resumes_on_the_device(name: str, real_device: torch.device) -> None:
    of = subject(name)
    make = of.model
    of.model = lambda seed=0: make(seed).to(real_device)  # type: ignore[method-assign]
    resume(of)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_model_may_move_after_compress(name: str, device: torch.device) -> None:
    learns_only_where_data_can_be_set(name, device)
    of = subject(name)
    _, wanted, _ = at_rest(of, CPU, standing)
    model = of.model()
    optimizer = standing(model)
    compressor = of.attach(model, optimizer)
    model.to(device)
    optimizer.load_state_dict(optimizer.state_dict())  # a search has trained: momentum follows
    train(of, compressor, optimizer)
    assert_alike(compressor, wanted)
    assert_on(compressor, next(model.parameters()).device)


@pytest.mark.parametrize("name", PRUNERS)
def test_what_masks_removed_is_put_back_on_another_device(
    name: str, real_device: torch.device
) -> None:
    of = subject(name)
    model = of.model()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    pruner = of.attach(model)
    trains = bool(of.user_functions())
    model.to(real_device)
    pruner.unwrap()
    for key, value in model.state_dict().items():
        assert value.device.type == real_device.type
        assert trains or torch.equal(value.cpu(), before[key]), key


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_model_goes_there_and_back_while_it_trains(name: str, device: torch.device) -> None:
    learns_only_where_data_can_be_set(name, device)
    of = subject(name)
    model, compressor, _ = at_rest(of, device)
    known = tensors(compressor)
    for place in (CPU, device):
        model.to(place)
        optimizer = moving(model)
        model(*of.inputs(3, model))[0].sum().backward()
        optimizer.step()
        assert_masked(compressor)
    assert tensors(compressor).keys() == known.keys()


@pytest.mark.parametrize("name", ALGORITHMS)
def test_copies_and_pickles_compute_the_same(name: str, device: torch.device) -> None:
    of = subject(name)
    model, _, _ = at_rest(of, device)
    x = of.inputs(7, model)
    learns_only_where_data_can_be_set(name, device)
    copies: list[nn.Module] = [copy.deepcopy(model)]
    if device.type in ("cpu", "cuda"):
        copies.append(pickle.loads(pickle.dumps(model)))
    with torch.no_grad():
        wanted = model.eval()(*x)
        for other in copies:
            assert torch.equal(other.eval()(*x), wanted)
            moved = other.to(CPU)(*(t.to(CPU) for t in x))
            torch.testing.assert_close(moved, wanted.to(CPU), rtol=1e-3, atol=1e-4)


def learns_only_where_data_can_be_set(name: str, device: torch.device) -> None:
    """A learned parameter moves by its data, for an optimizer holds it; a pretended one cannot."""
    if device.type == pretended.NAME and name.startswith("lsq"):
        pytest.skip("a parameter cannot become one of a pretended device")


def to_cpu(state: object) -> dict:
    def moved(value: object) -> object:
        if isinstance(value, torch.Tensor):
            return value.cpu()
        if isinstance(value, dict):
            return {key: moved(inner) for key, inner in value.items()}
        return [moved(inner) for inner in value] if isinstance(value, list) else value

    return moved(state)  # type: ignore[return-value]
