"""LSQ and LSQ+: the papers' formulas in float64, and who trains what is learned."""

import copy

import numpy as np
import pytest
import torch
from models import ConvNet, images, mlp, train_step
from torch import nn

from engine import CheckpointError, QuantType
from engine.algorithms import LSQPlusQuantizer, LSQQuantizer
from engine.quantization.learned import round_learned


def reference(v, s, beta, n, p, upstream):
    """Values, and gradients of v, s and beta, value by value; beta in whole steps."""
    zero = 0 if beta is None else int(np.clip(round(-beta / s), n, p))
    values, of_v, of_s, of_beta = [], [], 0.0, 0.0
    for value, grad in zip(v, upstream, strict=True):
        x = value / s + zero
        q = round(min(max(x, n), p))
        values.append((q - zero) * s)
        inside = n < x < p
        of_v.append(grad if inside else 0.0)
        of_s += grad * (q - x if inside else q)
        of_beta += 0.0 if inside else grad
    return values, of_v, of_s, of_beta


@pytest.mark.parametrize("beta", [None, 0.0, -0.4, 0.9])
@pytest.mark.parametrize(("n", "p"), [(-2, 1), (0, 3), (-8, 7), (-128, 127)])
def test_values_and_all_gradients_are_the_papers(beta, n, p):
    v = torch.randn(60, dtype=torch.float64).mul_(2).requires_grad_()
    s = torch.tensor(0.31, dtype=torch.float64, requires_grad=True)
    offset = None if beta is None else torch.tensor(beta, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(60, dtype=torch.float64)
    result = round_learned(v, s, offset, n, p, 0.25)
    result.backward(upstream)
    values, of_v, of_s, of_beta = reference(v.tolist(), s.item(), beta, n, p, upstream.tolist())
    np.testing.assert_allclose(result.detach(), values, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(v.grad, of_v, rtol=1e-12)
    np.testing.assert_allclose(s.grad, 0.25 * of_s, rtol=1e-10)
    if offset is not None:
        np.testing.assert_allclose(offset.grad, 0.25 * of_beta, rtol=1e-10, atol=1e-12)


def test_each_channel_has_a_gradient_of_its_own():
    v = torch.randn(3, 8, requires_grad=True)
    s = torch.tensor([[0.2], [0.5], [1.0]], requires_grad=True)
    upstream = torch.randn(3, 8)
    round_learned(v, s, None, -4, 3, 1.0).backward(upstream)
    for row in range(3):
        alone = s.detach()[row, 0].clone().requires_grad_()
        round_learned(v.detach()[row], alone, None, -4, 3, 1.0).backward(upstream[row])
        torch.testing.assert_close(s.grad[row, 0], alone.grad)


def test_zero_is_on_the_grid_whatever_the_offset():
    for offset in torch.linspace(-3, 3, 31):
        zeros = torch.zeros(1)
        assert round_learned(zeros, torch.tensor(0.37), offset, -8, 7, 1.0).item() == 0


# -- on a model --------------------------------------------------------------------------------


def entries(*kinds, bits=2, **more):
    return [{"op_types": ["Linear"], "quant_types": list(kinds), "quant_bits": bits, **more}]


def lsq(model, *kinds, cls=LSQQuantizer, optimizer=None, **more):
    quantizer = cls(model, entries(*kinds, **more), optimizer)
    quantizer.compress()
    return quantizer


def test_a_step_begins_at_two_means_over_the_root_of_the_largest_integer():
    model = mlp(30, 4)
    quantizer = lsq(model, "weight", "input", bits=3)
    batch = torch.rand(5, 30)
    model(batch)
    (wrapper,) = quantizer.wrappers
    mean = wrapper.weight.abs().mean().item()
    assert wrapper.weight_scale.item() == pytest.approx(2 * mean / 3**0.5)
    assert wrapper.input_scale.item() == pytest.approx(2 * batch.mean().item() / 7**0.5)
    assert (wrapper.weight_qmin, wrapper.weight_qmax) == (-4, 3)
    assert (wrapper.input_qmin, wrapper.input_qmax) == (0, 7)


@pytest.mark.parametrize(
    ("dtype", "integers"), [(None, (-2, 1)), ("int", (-2, 1)), ("uint", (0, 3))]
)
def test_the_first_batch_says_whether_an_activation_is_signed(dtype, integers):
    model = mlp(30, 4)
    more = {} if dtype is None else {"quant_dtype": {"input": dtype}}
    quantizer = lsq(model, "input", **more)
    model(torch.randn(5, 30))
    (wrapper,) = quantizer.wrappers
    assert (wrapper.input_qmin, wrapper.input_qmax) == integers


def test_the_gradient_of_a_step_is_scaled_by_its_number_of_values():
    model = mlp(30, 4)
    quantizer = lsq(model, "weight", "input")
    batch = torch.rand(5, 30)
    model(batch)
    (wrapper,) = quantizer.wrappers
    model(batch).sum().backward()
    got = wrapper.weight_scale.grad.item(), wrapper.input_scale.grad.item()
    # The same with the gradient unscaled: weights count all, activations those of one sample.
    w, s = wrapper.weight.detach(), wrapper.weight_scale.detach().clone().requires_grad_()
    x, t = batch, wrapper.input_scale.detach().clone().requires_grad_()
    rounded = round_learned(w, s, None, -2, 1, 1.0), round_learned(x, t, None, 0, 3, 1.0)
    nn.functional.linear(rounded[1], rounded[0]).sum().backward()
    assert got[0] == pytest.approx(s.grad.item() / (120 * 1) ** 0.5, rel=1e-4)
    assert got[1] == pytest.approx(t.grad.item() / (30 * 3) ** 0.5, rel=1e-4)


def test_lsq_plus_begins_weights_at_three_deviations_and_activations_at_least_error():
    model = mlp(64, 4)
    quantizer = lsq(model, "weight", "input", cls=LSQPlusQuantizer, bits=3)
    batch = nn.functional.silu(3 * torch.randn(50, 64))
    model(batch)
    (wrapper,) = quantizer.wrappers
    weight = wrapper.weight.detach()
    ends = [(weight.mean() + k * weight.std(correction=0)).abs().item() for k in (-3, 3)]
    assert wrapper.weight_scale.item() == pytest.approx(max(ends) / 4)
    scale, offset = wrapper.input_scale.item(), wrapper.input_offset.item()
    assert offset == pytest.approx(-wrapper.input_zero_point.item() * scale, abs=scale)
    rounded = quantizer.quantize_input(batch, wrapper).detach()
    error = (rounded - batch).square().mean()
    lsq_model = mlp(64, 4)
    other = lsq(lsq_model, "input", bits=3)
    lsq_model(batch)
    lsq_error = (other.quantize_input(batch, other.wrappers[0]) - batch).square().mean()
    assert error < 0.7 * lsq_error


def test_evaluation_before_training_passes_activations_and_quantizes_weights():
    model = mlp(8, 4).eval()
    quantizer = lsq(model, "weight", "input")
    batch = torch.randn(3, 8)
    expected = nn.functional.linear(batch, model[0].weight, model[0].bias)
    assert torch.equal(model(batch), expected)
    assert not quantizer.wrappers[0].input_seen
    assert len(model[0].weight.unique()) <= 4


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_first_batch_that_is_not_finite_begins_nothing(bad):
    model = mlp(4, 2)
    quantizer = lsq(model, "input")
    model(torch.full((2, 4), bad))
    assert not quantizer.wrappers[0].input_seen
    model(torch.rand(2, 4))
    assert quantizer.wrappers[0].input_scale.isfinite()


@pytest.mark.parametrize("cls", [LSQQuantizer, LSQPlusQuantizer])
def test_a_tensor_of_zeros_begins_with_a_step_that_can_be_divided_by(cls):
    model = mlp(4, 2)
    nn.init.zeros_(model[0].weight)
    lsq(model, "weight", "input", cls=cls)
    output = model(torch.zeros(3, 4))
    output.sum().backward()
    assert output.isfinite().all()
    assert torch.equal(model[0].weight, torch.zeros(2, 4))


# -- who trains it -----------------------------------------------------------------------------


def trained(model, optimizer, quantizer):
    train_step(model, optimizer, torch.rand(6, 8))
    before = [p.detach().clone() for p in quantizer.learned_parameters()]
    train_step(model, optimizer, torch.rand(6, 8))
    return [
        not torch.equal(a, b) for a, b in zip(before, quantizer.learned_parameters(), strict=True)
    ]


@pytest.mark.parametrize("made", ["given", "before", "after"])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
def test_the_users_optimizer_trains_it(made, kind):
    model = mlp(8, 6, 3)
    optimizer = None if made == "after" else kind(model.parameters(), lr=0.01)
    quantizer = lsq(
        model, "weight", "input", optimizer=optimizer if made == "given" else None, bits=3
    )
    if optimizer is None:
        optimizer = kind(model.parameters(), lr=0.01)
    # One step moves it already, also where the optimizer was found at that step only.
    model(torch.rand(6, 8))
    before = [p.detach().clone() for p in quantizer.learned_parameters()]
    train_step(model, optimizer, torch.rand(6, 8))
    moved = zip(before, quantizer.learned_parameters(), strict=True)
    assert all(not torch.equal(a, b) for a, b in moved)
    assert all(trained(model, optimizer, quantizer))


def test_it_joins_the_group_of_its_layers_weight_and_a_scheduler_made_before_goes_on():
    model = mlp(8, 6, 3)
    optimizer = torch.optim.SGD(
        [
            {"params": model[0].parameters(), "lr": 0.1},
            {"params": model[2].parameters(), "lr": 0.2},
        ],
        momentum=0.9,
    )
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, [0.1, 0.2], total_steps=9)
    quantizer = lsq(model, "weight", optimizer=optimizer)
    assert len(optimizer.param_groups) == 2
    for group, wrapper in zip(optimizer.param_groups, quantizer.wrappers, strict=True):
        assert any(p is wrapper.weight_scale for p in group["params"])
        assert len(group["params"]) == 3
    assert all(trained(model, optimizer, quantizer))
    scheduler.step()


def test_the_models_own_state_stays_and_the_optimizer_gets_its_parameters_back():
    model = mlp(8, 6, 3)
    optimizer = torch.optim.Adam(model.parameters())
    keys, parameters = list(model.state_dict()), list(map(id, model.parameters()))
    quantizer = lsq(model, "weight", "input", optimizer=optimizer)
    train_step(model, optimizer, torch.rand(6, 8))
    assert list(model.state_dict()) == keys
    assert list(map(id, model.parameters())) == parameters
    quantizer.unwrap()
    assert list(map(id, optimizer.param_groups[0]["params"])) == parameters
    assert len(optimizer.state) == len(parameters)
    train_step(model, optimizer, torch.rand(6, 8))


def test_gradients_do_not_add_up_where_only_the_models_are_cleared():
    model = mlp(8, 6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    quantizer = lsq(model, "weight", optimizer=optimizer)
    seen = []
    for _ in range(3):
        model.zero_grad()
        model(torch.ones(2, 8)).sum().backward()
        seen.append(quantizer.learned_parameters()[0].grad.item())
        optimizer.step()
    assert seen[1:] == [seen[0]] * 2


def test_a_step_never_becomes_negative():
    model = mlp(8, 6)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e4)
    quantizer = lsq(model, "weight", "input", optimizer=optimizer)
    for _ in range(4):
        train_step(model, optimizer, torch.randn(4, 8))
        assert all(bool((p > 0).all()) for p in quantizer.learned_parameters())


@pytest.mark.parametrize("cls", [LSQQuantizer, LSQPlusQuantizer])
@pytest.mark.parametrize("stop", [1, 3])
def test_training_resumes_bit_exactly(cls, stop):
    settings = [{"op_types": ["Conv2d", "Linear"], "quant_types": ["weight", "input"]}]
    settings[0]["quant_bits"] = {"weight": 3, "input": 4}

    def fresh(seed):
        torch.manual_seed(seed)
        model = ConvNet()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        quantizer = cls(model, settings, optimizer)
        quantizer.compress()
        return model, quantizer, optimizer

    def train(parts, steps):
        for step in steps:
            train_step(parts[0], parts[2], images(seed=step))

    straight = fresh(1)
    train(straight, range(5))
    first = fresh(1)
    train(first, range(stop))
    saved = [copy.deepcopy(part.state_dict()) for part in first]
    resumed = fresh(2)
    for part, state in zip(resumed, saved, strict=True):
        part.load_state_dict(state)
    train(resumed, range(stop, 5))
    for name, value in straight[0].state_dict().items():
        assert torch.equal(value, resumed[0].state_dict()[name]), name
    pairs = zip(straight[1].learned_parameters(), resumed[1].learned_parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_a_state_of_other_bits_is_refused_and_nothing_changed():
    model, other = mlp(8, 6), mlp(8, 6)
    quantizer, wider = lsq(model, "weight", bits=2), lsq(other, "weight", bits=4)
    model(torch.rand(2, 8))
    other(torch.rand(2, 8))
    before = other[0].weight.detach().clone()
    with pytest.raises(CheckpointError, match='"0" weight_qmin: -2, here it is -8'):
        wider.load_state_dict(quantizer.state_dict())
    assert torch.equal(other[0].weight, before)


def test_a_copy_trains_by_itself_and_leaves_the_original_alone():
    model = mlp(8, 6)
    quantizer = lsq(model, "weight")
    model(torch.rand(2, 8))
    before = quantizer.wrappers[0].weight_scale.detach().clone()
    other = copy.deepcopy(model)
    for parameter in other.parameters():
        parameter.data.mul_(3)
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    train_step(other, optimizer, torch.rand(2, 8))
    assert torch.equal(quantizer.wrappers[0].weight_scale, before)


@pytest.mark.parametrize("cls", [LSQQuantizer, LSQPlusQuantizer])
@pytest.mark.parametrize("scheme", ["per_tensor_symmetric", "per_channel_symmetric"])
def test_the_affine_form_gives_the_values_back(cls, scheme):
    model = mlp(8, 6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    quantizer = lsq(
        model, "weight", "input", cls=cls, bits=4, quant_scheme=scheme, optimizer=optimizer
    )
    for _ in range(3):
        train_step(model, optimizer, torch.randn(6, 8))
    (wrapper,) = quantizer.wrappers
    form = quantizer.affine_form(wrapper, QuantType.WEIGHT)
    assert form.scale.shape == (() if "tensor" in scheme else (6,))
    weight = model[0].weight.detach()
    assert torch.equal(form.values(form.integers(weight)), weight)
    form = quantizer.affine_form(wrapper, QuantType.INPUT)
    batch = torch.randn(9, 8)
    rounded = quantizer.quantize_input(batch, wrapper).detach()
    torch.testing.assert_close(form.values(form.integers(batch)), rounded)
