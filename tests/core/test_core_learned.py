"""Parameters that an algorithm keeps on its wrappers are trained, saved and given up again."""

import copy

import pytest
import torch
from models import mlp, train_step
from torch import nn

import engine
from engine.attach.learned_parameters import LearnedParameters

WEIGHTS = [{"quant_types": ["weight"], "quant_bits": 8, "op_types": ["Linear"]}]


class Gains(engine.Quantizer):
    """Multiplies each layer's weight by a number that is learned."""

    quant_grad = None

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        for wrapper in self.wrappers:
            wrapper.learn("gain", torch.tensor(1.0))

    def quantize_weight(self, weight, wrapper):
        return weight * wrapper.learned("gain", weight)


def attached(model, optimizer=None, cls=Gains):
    quantizer = cls(model, WEIGHTS, optimizer)
    quantizer.compress()
    return quantizer


def test_its_gradient_and_step_are_those_of_a_parameter_of_the_model():
    model = nn.Linear(3, 2, bias=False)
    twin = copy.deepcopy(model)
    gain = nn.Parameter(torch.tensor(1.0))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    other = torch.optim.SGD([twin.weight, gain], lr=0.1, momentum=0.9, weight_decay=0.01)
    (wrapper,) = attached(model, optimizer).get_modules_wrapper()
    for seed in range(3):
        x = torch.randn(4, 3, generator=torch.Generator().manual_seed(seed))
        for each, output in (
            (optimizer, model(x)),
            (other, nn.functional.linear(x, twin.weight * gain)),
        ):
            each.zero_grad()
            output.square().mean().backward()
            each.step()
    assert torch.allclose(wrapper.weight, twin.weight)
    assert torch.allclose(wrapper.gain, gain)
    assert wrapper.gain != 1


def test_it_joins_an_optimizer_that_is_made_later_in_its_first_step():
    model = mlp(4, 3)
    (wrapper,) = attached(model).get_modules_wrapper()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    train_step(model, optimizer, torch.randn(5, 4))
    assert torch.isclose((wrapper.gain.detach() - 1).abs(), torch.tensor(0.1), atol=1e-3)


def test_it_is_no_parameter_of_the_model_and_leaves_the_optimizer_at_the_end():
    model = mlp(4, 3)
    keys, parameters = list(model.state_dict()), [id(p) for p in model.parameters()]
    optimizer = torch.optim.Adam(model.parameters())
    quantizer = attached(model, optimizer)
    assert len(optimizer.param_groups[0]["params"]) == len(parameters) + 1
    assert list(model.state_dict()) == keys
    train_step(model, optimizer, torch.randn(5, 4))
    quantizer.unwrap()
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == parameters
    assert len(optimizer.state) == len(parameters)


def test_it_is_saved_with_the_compressor():
    model, other = mlp(4, 3), mlp(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    quantizer, fresh = attached(model, optimizer), attached(other)
    train_step(model, optimizer, torch.randn(5, 4))
    fresh.load_state_dict(quantizer.state_dict())
    (own,), (loaded,) = quantizer.get_modules_wrapper(), fresh.get_modules_wrapper()
    assert torch.equal(own.gain, loaded.gain)
    assert isinstance(loaded.gain, nn.Parameter)


def test_what_before_step_adds_to_its_gradient_counts():
    class Pulled(Gains):
        def before_step(self):
            for wrapper in self.wrappers:
                wrapper.gain.grad = torch.tensor(2.0)

    model = mlp(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    (wrapper,) = attached(model, optimizer, Pulled).get_modules_wrapper()
    train_step(model, optimizer, torch.randn(5, 4))
    assert torch.isclose(wrapper.gain, torch.tensor(1 - 0.1 * 2.0))


def test_gradients_do_not_add_up_where_only_the_models_are_cleared():
    model = mlp(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    (wrapper,) = attached(model, optimizer).get_modules_wrapper()
    seen = []
    for _ in range(2):
        model.zero_grad()
        model(torch.ones(2, 4)).sum().backward()
        seen.append(wrapper.gain.grad.item())
        optimizer.step()
    assert seen[0] == seen[1]


def test_a_copy_has_its_own_and_an_algorithm_without_any_costs_nothing():
    model = mlp(4, 3)
    quantizer = attached(model)
    before = quantizer.wrappers[0].gain.detach().clone()
    twin = copy.deepcopy(model)
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
    train_step(twin, optimizer, torch.randn(5, 4))
    assert torch.equal(quantizer.wrappers[0].gain, before)
    assert not LearnedParameters(model, [])


@pytest.mark.parametrize("where", ["weight_group", "first_group"])
def test_it_joins_the_group_of_its_layers_weight_or_else_the_first(where):
    model = mlp(4, 3, 2)
    groups = [{"params": model[0].parameters()}]
    if where == "weight_group":
        groups.append({"params": model[2].parameters(), "lr": 0.5})
    optimizer = torch.optim.SGD(groups, lr=0.1)
    quantizer = attached(model, optimizer)
    last = quantizer.get_modules_wrapper()[-1].gain
    (group,) = [g for g in optimizer.param_groups if any(p is last for p in g["params"])]
    assert group is optimizer.param_groups[-1]


def test_what_an_algorithm_keeps_follows_its_layer_to_another_device():
    model = mlp(4, 3)
    quantizer = attached(model)
    quantizer.set_wrappers_attribute("statistic", torch.zeros(3))
    (wrapper, *_) = quantizer.get_modules_wrapper()
    assert wrapper.statistic.device.type == "cpu"
    model.to("meta")  # a device that is everywhere
    assert wrapper.statistic.device.type == "meta"
    wrapper.statistic += 1
    assert quantizer.state_dict()["wrappers"][wrapper.name]["buffers"]["statistic"].is_meta


def test_a_group_of_their_own_gives_them_a_learning_rate_of_their_own():
    model = mlp(4, 3)
    quantizer = attached(model)
    own = quantizer.learned_parameters()
    groups = [{"params": model.parameters()}, {"params": own, "lr": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    before = [gain.item() for gain in own]
    train_step(model, optimizer, torch.randn(5, 4))
    assert [gain.item() for gain in own] == before
    assert all(gain.grad is None for gain in own), "they were in a step, and cleared"
    assert len(optimizer.param_groups[0]["params"]) == len(list(model.parameters()))
