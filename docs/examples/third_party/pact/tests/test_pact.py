"""The engine's checks, and what is special about PACT."""

import torch
from engine_pact import Clip, PACTQuantizer
from torch import nn

from engine.testing import QuantizerConformance

INPUT = {"quant_types": ["input"], "quant_bits": 2, "op_types": ["Linear"]}


class TestPACTQuantizer(QuantizerConformance):
    plugin = "pact"


def attached(optimizer=None, **arguments):
    """Return a layer that adds its three inputs up, and its quantizer."""
    model = nn.Linear(3, 1, bias=False)
    model.weight.data.fill_(1.0)
    optimizer = optimizer and optimizer(model.parameters())
    quantizer = PACTQuantizer(model, [INPUT], optimizer, **arguments)
    quantizer.compress()
    return model, quantizer, optimizer


def test_two_bits_give_four_values_up_to_the_level():
    x = torch.tensor([-1.0, 0.0, 0.9, 1.1, 2.6, 3.0, 9.0])
    y = Clip.apply(x, torch.tensor(3.0), 3)
    assert y.tolist() == [0.0, 0.0, 1.0, 1.0, 3.0, 3.0, 3.0]


def test_the_gradient_is_the_inputs_inside_and_the_levels_above():
    x = torch.tensor([-1.0, 0.5, 2.9, 3.0, 9.0], requires_grad=True)
    alpha = torch.tensor(3.0, requires_grad=True)
    Clip.apply(x, alpha, 3).mul(torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0])).sum().backward()
    assert x.grad.tolist() == [0.0, 2.0, 4.0, 0.0, 0.0]
    assert alpha.grad == 8 + 16


def test_the_level_is_that_of_clipping_without_rounding():
    """The paper's own form of the clip, 0.5 (|x| - |x - a| + a), differentiated by torch."""
    x = torch.randn(200, dtype=torch.float64) * 3
    for bits in (8, 16):
        alpha = torch.tensor(2.5, dtype=torch.float64, requires_grad=True)
        level = alpha.detach().clone().requires_grad_()
        (0.5 * (x.abs() - (x - level).abs() + level)).sum().backward()
        y = Clip.apply(x, alpha, 2**bits - 1)
        y.sum().backward()
        assert torch.allclose(alpha.grad, level.grad)
        assert torch.allclose(y, x.clamp(0, 2.5), atol=2.5 / (2**bits - 1))


def test_the_penalty_and_the_loss_move_the_level():
    def sgd(parameters):
        return torch.optim.SGD(parameters, lr=0.1)

    model, quantizer, optimizer = attached(sgd, initial_alpha=2.0, alpha_decay=0.5)
    model(torch.tensor([[1.0, 5.0, 7.0]])).sum().backward()
    optimizer.step()
    (wrapper,) = quantizer.get_modules_wrapper()
    # Two inputs are above: 2 from the loss, 2 * 0.5 * 2.0 from the penalty.
    assert torch.isclose(wrapper.input_alpha, torch.tensor(2.0 - 0.1 * (2 + 2)))


def test_weights_are_dorefas():
    model = nn.Linear(3, 1, bias=False)
    model.weight.data = torch.tensor([[0.0, 0.2, -2.0]])
    PACTQuantizer(model, [{**INPUT, "quant_types": ["weight"]}]).compress()
    squashed = torch.tensor([0.0, 0.2, -2.0], dtype=torch.float64).tanh()
    unit = squashed / (2 * squashed.abs().max()) + 0.5
    expected = 2 * (unit * 3).round() / 3 - 1
    assert torch.allclose(model.weight[0].double(), expected)


def test_what_is_learned_leaves_with_the_quantizer():
    model, quantizer, optimizer = attached(torch.optim.Adam)
    assert len(optimizer.param_groups[0]["params"]) == 2
    quantizer.unwrap()
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(model.weight)]
