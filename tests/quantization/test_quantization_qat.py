"""QAT: ranges, delay, and that training is otherwise the user's. Numbers by hand."""

import copy

import pytest
import torch
from models import ConvNet, images, mlp, train_step
from torch import nn

from engine.algorithms import QAT_Quantizer

WEIGHT = [{"quant_types": ["weight"], "quant_bits": 8, "op_types": ["Linear"]}]
OUTPUT = [{"quant_types": ["output"], "quant_bits": 8, "op_types": ["Identity"]}]
EVERYTHING = [
    {
        "quant_types": ["weight", "input", "output"],
        "quant_bits": {"weight": 4, "input": 8, "output": 6},
        "op_types": ["Conv2d", "Linear"],
    }
]


def linear(values: list[list[float]], **options) -> nn.Linear:
    layer = nn.Linear(len(values[0]), len(values), **options)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(values))
    return layer


def attach(model: nn.Module, entries: list[dict], **settings) -> QAT_Quantizer:
    quantizer = QAT_Quantizer(model, [{**entry, **settings} for entry in entries])
    quantizer.compress()
    return quantizer


def watching_identity(**settings) -> tuple[nn.Module, QAT_Quantizer]:
    """A layer whose output is what it is given, so that ranges are set directly."""
    model = nn.Sequential(nn.Identity())
    return model, attach(model, OUTPUT, **settings)


# -- weights -----------------------------------------------------------------------------------


def test_weights_have_nnis_scale_and_zero_point():
    for values, scale, zero_points in (
        ([[1.0, 2.0], [3.0, 5.0]], 5 / 255, {0}),
        ([[-1.0, 2.0], [3.0, 5.0]], 6 / 255, {42, 43}),
    ):
        model = nn.Sequential(linear(values))
        (wrapper,) = attach(model, WEIGHT).get_modules_wrapper()
        _ = model[0].weight
        assert wrapper.weight_scale.item() == pytest.approx(scale)
        assert wrapper.weight_zero_point.item() in zero_points


def test_weights_round_as_nnis_do():
    model = nn.Sequential(linear([[1.1287, 2.3456], [3.7814, 5.9723]]))
    attach(model, WEIGHT)
    expected = torch.tensor([[1.1242, 2.3421], [3.7707, 5.9723]])
    torch.testing.assert_close(model[0].weight, expected, rtol=1e-4, atol=1e-4)


def test_the_forward_pass_uses_the_rounded_weight_and_the_bias_as_it_is():
    model = nn.Sequential(linear([[1.1287, 2.3456], [3.7814, 5.9723]]))
    attach(model, WEIGHT)
    rounded = torch.tensor([[1.1242, 2.3421], [3.7707, 5.9723]])
    expected = torch.ones(1, 2) @ rounded.T + model[0].bias
    torch.testing.assert_close(model(torch.ones(1, 2)), expected, rtol=1e-4, atol=1e-4)


def test_the_gradient_of_a_weight_is_that_of_its_rounded_value():
    model = nn.Sequential(linear([[-1.0, 2.0], [3.0, 5.0]]))
    attach(model, WEIGHT)
    model(torch.tensor([[2.0, 3.0]])).sum().backward()
    assert model[0]._parameters["weight"].grad.tolist() == [[2, 3], [2, 3]]


@pytest.mark.parametrize("fill", [0.0, 0.7])
def test_a_constant_layer_is_quantized_to_itself(fill):
    model = nn.Sequential(nn.Linear(3, 2))
    nn.init.constant_(model[0].weight, fill)
    nn.init.zeros_(model[0].bias)
    attach(model, EVERYTHING[:1], op_types=["Linear"])
    output = model(torch.zeros(2, 3))
    output.sum().backward()
    assert torch.equal(output, torch.zeros(2, 2))
    torch.testing.assert_close(model[0].weight, torch.full((2, 3), fill))
    assert model[0]._parameters["weight"].grad.isfinite().all()


def test_evaluation_quantizes_the_weight_as_it_is_now():
    model = nn.Sequential(linear([[1.0, 2.0], [3.0, 5.0]], bias=False))
    attach(model, WEIGHT)
    model(torch.ones(1, 2))
    model.eval()
    with torch.no_grad():
        model[0]._parameters["weight"].mul_(10)
    torch.testing.assert_close(
        model(torch.ones(1, 2)), torch.tensor([[30.0, 80.0]]), rtol=1e-2, atol=0
    )


# -- activations -------------------------------------------------------------------------------


def test_the_first_batch_sets_the_range_and_later_ones_move_it_by_a_hundredth():
    model, quantizer = watching_identity()
    (wrapper,) = quantizer.get_modules_wrapper()
    model(torch.tensor([-1.0, 3.0]))
    assert wrapper.output_range.tolist() == [-1, 3]
    model(torch.tensor([-2.0, 5.0]))
    assert wrapper.output_range.tolist() == pytest.approx([-1.01, 3.02])
    model(torch.tensor([0.0, 0.0]))
    assert wrapper.output_range.tolist() == pytest.approx([-1.01 * 0.99, 3.02 * 0.99])
    assert wrapper.output_scale.item() == pytest.approx((1.01 + 3.02) * 0.99 / 255)
    assert wrapper.output_zero_point.item() == round(1.01 / 4.03 * 255)


def test_the_range_of_the_first_batch_is_used_on_it():
    model, _ = watching_identity(quant_bits=2)
    # Scale 1, zero point 1: the grid is -1, 0, 1, 2.
    assert model(torch.tensor([-1.0, 0.4, 0.6, 2.0])).tolist() == [-1, 0, 1, 2]


def test_evaluation_before_any_training_passes_activations_unchanged():
    model, quantizer = watching_identity()
    batch = torch.tensor([0.12345, 7.7])
    model.eval()
    assert torch.equal(model(batch), batch)
    assert not quantizer.get_modules_wrapper()[0].output_seen


def test_evaluation_uses_the_range_and_leaves_it():
    model, quantizer = watching_identity(quant_bits=2)
    model(torch.tensor([-1.0, 2.0]))
    model.eval()
    assert model(torch.tensor([-50.0, 0.6, 50.0])).tolist() == [-1, 1, 2]
    assert quantizer.get_modules_wrapper()[0].output_range.tolist() == [-1, 2]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_batch_without_a_range_moves_nothing(bad):
    model, quantizer = watching_identity()
    (wrapper,) = quantizer.get_modules_wrapper()
    model(torch.tensor([bad, 1.0]))
    model(torch.tensor([-1.0, 3.0]))
    model(torch.tensor([2.0, bad]))
    assert wrapper.output_range.tolist() == [-1, 3]


def test_activations_are_clipped_with_a_gradient_of_zero():
    model, _ = watching_identity(quant_bits=2)
    model(torch.tensor([-1.0, 2.0]))
    model.eval()
    batch = torch.tensor([-50.0, 0.6, 50.0], requires_grad=True)
    model(batch).sum().backward()
    assert batch.grad.tolist() == [0, 1, 0]


def test_weight_input_and_output_have_grids_of_their_own():
    model = nn.Sequential(linear([[1.0, 2.0]], bias=False))
    (wrapper,) = attach(model, EVERYTHING, op_types=["Linear"]).get_modules_wrapper()
    model(torch.tensor([[3.0, 5.0]]))
    # 4, 8 and 6 bits over 2, 5 and 3 + 10 (each with its own rounding, at most half a step).
    assert wrapper.weight_scale.item() == pytest.approx(2 / 15)
    assert wrapper.input_scale.item() == pytest.approx(5 / 255)
    assert wrapper.output_scale.item() == pytest.approx(13 / 63, rel=0.1)


def test_another_branch_keeps_its_gradient():
    # NNI zeroed the clipped part of the gradient in place, for both sides of the addition.
    model, _ = watching_identity(quant_bits=2)
    model(torch.tensor([-1.0, 2.0]))
    model.eval()
    batch = torch.tensor([-50.0, 0.6, 50.0], requires_grad=True)
    other = torch.zeros(3, requires_grad=True)
    (model(batch) + other).sum().backward()
    assert other.grad.tolist() == [1, 1, 1]
    assert batch.grad.tolist() == [0, 1, 0]


# -- the delay ---------------------------------------------------------------------------------


def test_quantization_starts_after_exactly_so_many_optimizer_steps():
    model = mlp(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    quantizer = QAT_Quantizer(
        model,
        [
            {
                "quant_types": ["weight", "output"],
                "quant_bits": 2,
                "quant_start_step": 3,
                "op_types": ["Linear"],
            }
        ],
        optimizer,
    )
    quantizer.compress()
    rounded = []
    for _ in range(5):
        rounded.append(len(model[0].weight.unique()) <= 4)
        train_step(model, optimizer, torch.randn(6, 4))
    assert rounded == [False, False, False, True, True]


def test_ranges_are_followed_during_the_delay():
    model, quantizer = watching_identity(quant_start_step=1)
    batch = torch.tensor([-1.0, 0.5, 2.0])
    assert torch.equal(model(batch), batch)
    assert quantizer.get_modules_wrapper()[0].output_range.tolist() == [-1, 2]


def test_the_state_has_the_same_shapes_before_and_after_the_delay():
    model = mlp(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    quantizer = QAT_Quantizer(
        model, [{**EVERYTHING[0], "quant_start_step": 1, "op_types": ["Linear"]}], optimizer
    )
    quantizer.compress()

    def shapes():
        state = quantizer.state_dict()["wrappers"]["0"]["buffers"]
        return {key: value.shape for key, value in state.items() if value is not None}

    before, of_model = shapes(), {k: v.shape for k, v in model.state_dict().items()}
    train_step(model, optimizer, torch.randn(6, 4))
    train_step(model, optimizer, torch.randn(6, 4))
    assert shapes() == before
    assert {k: v.shape for k, v in model.state_dict().items()} == of_model


# -- the training loop is the user's ------------------------------------------------------------


def test_parameters_keys_and_their_order_stay():
    model = ConvNet()
    keys = list(model.state_dict())
    parameters = [(name, id(p)) for name, p in model.named_parameters()]
    buffers = [name for name, _ in model.named_buffers()]
    quantizer = attach(model, EVERYTHING)
    model(images())
    assert list(model.state_dict()) == keys
    assert [(name, id(p)) for name, p in model.named_parameters()] == parameters
    assert [name for name, _ in model.named_buffers()] == buffers
    quantizer.unwrap()
    assert [(name, id(p)) for name, p in model.named_parameters()] == parameters


def test_optimizer_groups_and_a_scheduler_made_before_stay():
    model = ConvNet()
    groups = [
        {"params": model.conv1.parameters(), "lr": 0.1, "weight_decay": 0.01},
        {"params": [*model.conv2.parameters(), *model.fc.parameters()], "lr": 0.2},
    ]
    optimizer = torch.optim.SGD(groups, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=[0.1, 0.2], total_steps=9)
    plain = copy.deepcopy(optimizer.param_groups)
    QAT_Quantizer(model, EVERYTHING, optimizer).compress()
    for group, before in zip(optimizer.param_groups, plain, strict=True):
        assert group.keys() == before.keys()
        assert [p.shape for p in group["params"]] == [p.shape for p in before["params"]]
        for key in ("lr", "weight_decay", "momentum", "initial_lr", "max_lr"):
            assert group[key] == before[key]
    before = model.conv1._parameters["weight"].detach().clone()
    train_step(model, optimizer, images())
    scheduler.step()
    assert not torch.equal(model.conv1._parameters["weight"], before)


def test_training_with_quantized_weights_moves_the_users_parameter():
    model = nn.Sequential(linear([[0.0, 1.0]], bias=False))
    attach(model, WEIGHT)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    model(torch.tensor([[1.0, 2.0]])).sum().backward()
    optimizer.step()
    assert model[0]._parameters["weight"].tolist() == [[-0.5, 0.0]]


def _trained(model, quantizer, optimizer, steps):
    for step in steps:
        quantizer.update_epoch(step // 2)
        train_step(model, optimizer, images(seed=step))


@pytest.mark.parametrize("stop", [1, 3, 5])
def test_training_resumes_bit_exactly(stop):
    entries = [{**EVERYTHING[0], "quant_start_step": 3}]

    def fresh(seed):
        torch.manual_seed(seed)
        model = ConvNet()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        quantizer = QAT_Quantizer(model, entries, optimizer)
        quantizer.compress()
        return model, quantizer, optimizer

    straight = fresh(1)
    _trained(*straight, range(6))

    first = fresh(1)
    _trained(*first, range(stop))
    saved = [copy.deepcopy(part.state_dict()) for part in first]
    resumed = fresh(2)
    for part, state in zip(resumed, saved, strict=True):
        part.load_state_dict(state)
    _trained(*resumed, range(stop, 6))

    for name, value in straight[0].state_dict().items():
        assert torch.equal(value, resumed[0].state_dict()[name]), name
    for name, state in straight[1].state_dict()["wrappers"].items():
        other = resumed[1].state_dict()["wrappers"][name]
        assert state["attributes"] == other["attributes"]
        for key, value in state["buffers"].items():
            assert value is None or torch.equal(value, other["buffers"][key]), (name, key)
    straight[0].eval()
    resumed[0].eval()
    assert torch.equal(straight[0](images()), resumed[0](images()))


def test_a_restored_model_knows_that_ranges_were_seen():
    model, quantizer = watching_identity(quant_bits=2)
    model(torch.tensor([-1.0, 2.0]))
    state = quantizer.state_dict()
    other, restored = watching_identity(quant_bits=2)
    restored.load_state_dict(state)
    other.eval()
    assert other(torch.tensor([-9.0, 0.6, 9.0])).tolist() == [-1, 1, 2]


def test_the_state_survives_torch_save_with_weights_only(tmp_path):
    model = ConvNet()
    quantizer = attach(model, EVERYTHING)
    model(images())
    torch.save(quantizer.state_dict(), tmp_path / "quantizer.pth")
    quantizer.load_state_dict(torch.load(tmp_path / "quantizer.pth", weights_only=True))
