"""Post-training quantization: calibration, corrections, and what may go wrong."""

import copy

import pytest
import torch
import torch.nn.functional as F
from models import ConvNet, images, mlp
from torch import nn

from engine import EngineError
from engine.algorithms import PTQQuantizer
from engine.attach.changes import Changes
from engine.quantization.batch_norm import channel_factor
from engine.quantization.equalization import equalize
from engine.quantization.observers import OBSERVERS, MinMax


def ptq(model, *kinds, bits=8, op_types=("Linear",), quant_scheme=None, **more):
    entry = {"op_types": list(op_types), "quant_types": list(kinds), "quant_bits": bits}
    if quant_scheme:
        entry["quant_scheme"] = quant_scheme
    quantizer = PTQQuantizer(model, [entry], **more)
    quantizer.compress()
    return quantizer


@pytest.mark.parametrize("observer", sorted(OBSERVERS))
def test_ranges_are_what_the_observer_says_of_the_float_activations(observer):
    model = mlp(8, 6, 3)
    plain = copy.deepcopy(model)
    quantizer = ptq(model, "weight", "input", "output", observer=observer)
    batches = [torch.randn(20, 8) * n for n in (1, 3)]
    assert quantizer.calibrate(batches) is model
    options = {"moving_average": {"decay": 0.9}}.get(observer, {})
    for wrapper, layer, before in (
        (quantizer.wrappers[0], plain[0], nn.Identity()),
        (quantizer.wrappers[1], plain[2], plain[:2]),
    ):
        for key, see in (("input", before), ("output", lambda x, f=before, g=layer: g(f(x)))):
            wanted = OBSERVERS[observer](**options)
            for batch in batches:
                wanted.observe(see(batch))
            low, high = wanted.limits(wrapper.grids[key].scheme)
            torch.testing.assert_close(getattr(wrapper, f"{key}_range"), torch.stack((low, high)))


def test_before_calibration_weights_are_quantized_and_activations_pass():
    model = mlp(8, 6)
    plain = copy.deepcopy(model)
    ptq(model, "weight", "input", bits=4)
    batch = torch.randn(3, 8)
    assert len(model[0].weight[0].unique()) <= 15
    assert torch.equal(model(batch), F.linear(batch, model[0].weight, plain[0].bias))


def test_calibration_leaves_modes_gradients_and_norms_alone():
    model = ConvNet()
    model.bn1.eval()
    before = copy.deepcopy(model.state_dict())
    quantizer = ptq(model, "weight", "input", op_types=["Conv2d"])
    quantizer.calibrate([images()])
    assert model.training
    assert not model.bn1.training
    assert all(p.grad is None for p in model.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize(
    ("batch", "forward"),
    [
        (torch.ones(2, 4), None),
        ((torch.ones(2, 4), torch.tensor([0, 1])), None),
        ([torch.ones(2, 4)], None),
        ({"input": torch.ones(2, 4)}, None),
        (2, lambda model, batch: model(torch.ones(batch, 4))),
    ],
)
def test_a_batch_may_be_what_a_loader_gives(batch, forward):
    model = mlp(4, 3)
    quantizer = ptq(model, "input")
    quantizer.calibrate([batch], forward)
    assert quantizer.wrappers[0].input_range.tolist() == [1, 1]


def test_calibrating_again_begins_anew():
    model = mlp(4, 3)
    quantizer = ptq(model, "input")
    quantizer.calibrate([torch.full((2, 4), 50.0)])
    quantizer.calibrate([torch.ones(2, 4)])
    assert quantizer.wrappers[0].input_range.tolist() == [1, 1]


def test_a_subclass_may_observe_in_its_own_way():
    class Doubled(MinMax):
        def limits(self, scheme):
            return 2 * self.range[0], 2 * self.range[1]

    class Wide(PTQQuantizer):
        def make_observer(self):
            return Doubled()

    model = mlp(4, 3)
    entry = {"op_types": ["Linear"], "quant_types": ["input"], "quant_bits": 8}
    quantizer = Wide(model, [entry])
    quantizer.compress()
    quantizer.calibrate([torch.ones(2, 4)])
    assert quantizer.wrappers[0].input_range.tolist() == [2, 2]


def test_eight_bits_are_near_float_and_finer_grids_nearer():
    torch.manual_seed(5)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten())
    batches = list(torch.randn(8, 4, 3, 10, 10))
    x = torch.randn(6, 3, 10, 10)
    errors = []
    for bits in (8, 6, 4, 2):
        other = copy.deepcopy(model)
        ptq(other, "weight", "input", bits=bits, op_types=["Conv2d"]).calibrate(batches)
        errors.append(((other(x) - model(x)).norm() / model(x).norm()).item())
    assert errors[0] < 0.02
    assert errors == sorted(errors)


# -- what may go wrong -------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_an_activation_that_is_not_finite_is_named_with_its_batch(bad):
    model = mlp(4, 3)
    quantizer = ptq(model, "input", "output")
    quantizer.calibrate([torch.ones(2, 4)])
    batches = [torch.zeros(2, 4), torch.tensor([[1.0, bad, 0.0, 0.0]])]
    with pytest.raises(EngineError) as caught:
        quantizer.calibrate(batches)
    assert str(caught.value) == (
        'the input of layer "0" (Linear) holds NaN or infinity in calibration batch 1\n'
        "  check the batch, and the model in float32"
    )
    assert quantizer.wrappers[0].input_range.tolist() == [1, 1]
    assert model.training
    assert model(torch.rand(2, 4)).isfinite().all()


@pytest.mark.parametrize("batches", [[], iter(())])
@pytest.mark.parametrize("correct", [False, True])
def test_no_batches_are_an_error(batches, correct):
    quantizer = ptq(mlp(4, 3), "weight", "input", bias_correction=correct)
    with pytest.raises(EngineError) as caught:
        quantizer.calibrate(batches)
    assert str(caught.value) == (
        "calibration got no batches\n"
        "  it needs at least one: a list of batches, or a loader that is not used up"
    )


class Experts(nn.Module):
    """Of two experts one is chosen by the sign of the first input."""

    def __init__(self):
        super().__init__()
        self.positive, self.negative = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x):
        return self.positive(x) if x[0, 0] > 0 else self.negative(x)


def test_an_expert_that_no_batch_reaches_is_quantized_by_its_weights_and_named():
    model = Experts()
    quantizer = ptq(model, "weight", "input")
    with pytest.warns(UserWarning, match="no calibration batch") as caught:
        quantizer.calibrate([torch.ones(2, 4)])
    assert str(caught[0].message) == (
        'no calibration batch reached the input of layer "negative": these stay in float, weights '
        "are quantized\n"
        "  give batches that reach them; a layer that the model does not call is left out with "
        "exclude: true"
    )
    assert quantizer.wrappers[0].input_range.tolist() == [1, 1]
    plain = model.negative._parameters["weight"]
    assert not torch.equal(model.negative.weight, plain)
    x = -torch.rand(2, 4)
    assert torch.equal(
        model(x), torch.nn.functional.linear(x, model.negative.weight, model.negative.bias)
    )


def test_where_no_batch_reaches_anything_nothing_is_changed():
    class Unused(Experts):
        def forward(self, x):
            return x

    quantizer = ptq(Unused(), "input", "output")
    with pytest.raises(EngineError, match='no calibration batch reached the input of layer "pos'):
        quantizer.calibrate([torch.ones(2, 4)])
    assert quantizer.wrappers[0].input_range.isnan().all()


def test_calibration_needs_an_attached_quantizer():
    entry = {"op_types": ["Linear"], "quant_types": ["input"], "quant_bits": 8}
    with pytest.raises(EngineError, match=r"call compress\(\) before calibrate\(\)"):
        PTQQuantizer(mlp(), [entry]).calibrate([torch.ones(1, 8)])


# -- bias correction ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["linear", "conv", "transposed", "norm"])
def test_the_mean_of_each_output_channel_is_put_right(kind):
    torch.manual_seed(6)
    layer = {
        "linear": lambda: nn.Linear(6, 5),
        "conv": lambda: nn.Conv2d(6, 5, 3),
        "transposed": lambda: nn.ConvTranspose2d(6, 5, 3),
        "norm": lambda: nn.Conv2d(6, 5, 3, bias=False),
    }[kind]()
    model = nn.Sequential(layer, *([nn.BatchNorm2d(5)] if kind == "norm" else [])).eval()
    shape = (40, 6) if kind == "linear" else (10, 6, 5, 5)
    batches = [torch.rand(shape) + 1 for _ in range(3)]
    everything = torch.cat(batches)
    dims = (0,) if kind == "linear" else (0, 2, 3)
    want = model(everything).mean(dims)
    parts = {}
    for correct in (False, True):
        other = copy.deepcopy(model)
        quantizer = ptq(
            other, "weight", bits=2, op_types=[type(layer).__name__], bias_correction=correct
        )
        quantizer.calibrate(batches)
        parts[correct] = (other(everything).mean(dims) - want).abs().max().item()
        quantizer.unwrap()
        for name, value in other.state_dict().items():
            assert torch.equal(value, model.state_dict()[name]), name
    assert parts[False] > 0.05
    assert parts[True] < 1e-5


def test_correcting_twice_is_correcting_once():
    model = mlp(6, 5)
    quantizer = ptq(model, "weight", bits=2, bias_correction=True)
    batches = [torch.rand(20, 6)]
    quantizer.calibrate(batches)
    once = model[0].bias.detach().clone()
    quantizer.calibrate(iter(batches))
    assert torch.equal(model[0].bias, once)


def test_a_layer_with_neither_bias_nor_norm_is_left_alone():
    model = nn.Sequential(nn.Linear(6, 5, bias=False))
    ptq(model, "weight", bits=2, bias_correction=True).calibrate([torch.rand(20, 6)])
    assert model[0].bias is None


# -- cross-layer equalization ------------------------------------------------------------------


class Uneven(nn.Module):
    """Channels of very different ranges, through everything that scales with its input."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 6, 3, groups=6)
        self.conv3 = nn.Conv2d(6, 4, 1)
        self.fc1, self.fc2 = nn.Linear(4, 8), nn.Linear(8, 2)
        self.drop = nn.Dropout(0.5)
        with torch.no_grad():
            # What reads a large channel has small weights: all channels matter alike.
            spread = torch.logspace(-1, 1, 6)
            self.bn1.weight.mul_(spread)
            self.bn1.bias.normal_().mul_(spread)
            self.bn1.running_var.uniform_(0.5, 2)
            self.conv2.weight.div_(spread.view(-1, 1, 1, 1))
            self.fc1.weight.mul_(torch.logspace(-1, 1, 8).view(-1, 1))
            self.fc1.bias.mul_(torch.logspace(-1, 1, 8))
            self.fc2.weight.div_(torch.logspace(-1, 1, 8))

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.max_pool2d(self.conv2(x).relu(), 2)
        x = torch.sigmoid(self.conv3(x)).mean((2, 3))
        return self.fc2(self.drop(F.relu(self.fc1(x))))


def write(tensor, value):
    with torch.no_grad():
        tensor.copy_(value)


def test_equalizing_changes_no_output_and_is_undone_exactly():
    torch.manual_seed(7)
    model = Uneven().eval()
    before = copy.deepcopy(model.state_dict())
    x = torch.randn(4, 3, 12, 12)
    want = model(x)
    changes = Changes()

    def change(tensor, value):
        with torch.no_grad(), changes.noting([tensor]):
            tensor.copy_(value)

    done = equalize(model, change)
    names = {module: name for name, module in model.named_modules()}
    # Not through the sigmoid, which does not scale with its input.
    assert [(names[p.first], p.norm and names[p.norm], names[p.second]) for p in done] == [
        ("conv1", "bn1", "conv2"),
        ("conv2", None, "conv3"),
        ("fc1", None, "fc2"),
    ]
    torch.testing.assert_close(model(x), want, rtol=1e-4, atol=1e-5)
    assert not torch.equal(model.fc1.weight, before["fc1.weight"])
    changes.put_back()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_afterwards_channels_have_ranges_within_a_factor_of_two_of_their_readers():
    torch.manual_seed(8)
    model = Uneven().eval()

    def uneven():
        made = model.fc1.weight.abs().amax(1)
        read = model.fc2.weight.abs().amax(0)
        folded = model.conv1.weight.abs().amax((1, 2, 3)) * channel_factor(model.bn1).abs()
        depthwise = model.conv2.weight.abs().amax((1, 2, 3))
        return max(
            (made / read).log2().abs().max().item(),
            (folded / depthwise).log2().abs().max().item(),
        )

    assert uneven() > 3
    equalize(model, write)
    # s is rounded to a power of two, so that ranges differ by less than two of its steps.
    assert uneven() <= 2.01


def test_it_makes_few_bits_with_one_scale_better_and_unwrap_gives_the_weights_back():
    torch.manual_seed(9)
    model = Uneven().eval()
    before = copy.deepcopy(model.state_dict())
    x = torch.randn(8, 3, 12, 12)
    want = model(x)
    errors = []
    for equalized in (False, True):
        quantizer = ptq(
            model,
            "weight",
            bits=4,
            op_types=["Conv2d", "Linear"],
            quant_scheme="per_tensor_symmetric",
            cross_layer_equalization=equalized,
        )
        errors.append((model(x) - want).norm().item())
        quantizer.unwrap()
        for name, value in model.state_dict().items():
            assert torch.equal(value, before[name]), name
    assert errors[1] < 0.7 * errors[0]


def test_shared_weights_and_channels_of_zeros_are_left_alone():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    assert equalize(model, write) == []
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    nn.init.zeros_(model[0].weight)
    (pair,) = equalize(model, write)
    assert (pair.scale == 1).all()
