"""AdaRound: against all roundings there are, outputs in float64, and rounding to nearest."""

import copy
import itertools
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import engine
from engine import QuantType

ENTRY = {"op_types": ["default"], "quant_types": ["weight"], "quant_bits": 4}


def rounded(model, batches, *, name="ada_round", options=(), **entry):
    config = {"compressor": name, "config_list": [{**ENTRY, **entry}], **dict(options)}
    quantizer = engine.create_compressor(model, config, batches=batches)
    quantizer.compress()
    return quantizer


def correlated(count, columns, seed=0, *shape):
    """Return inputs whose columns have much to do with each other, as those of layers have."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(max(columns // 3, 1), columns, generator=torch.Generator().manual_seed(7))
    x = torch.randn(count, *shape, len(mix), generator=generator) @ mix
    x = x + 0.3 * torch.randn(x.shape, generator=generator)
    level = 3 * torch.rand(count, *[1] * len(shape), columns, generator=generator)
    return (x + level).relu().movedim(-1, 1)


def grid_of(quantizer, wrapper):
    """Return integers, scale and zero point of a layer's weight, spread over it, in float64."""
    form = quantizer.affine_form(wrapper, QuantType.WEIGHT)
    integers = form.integers(wrapper.weight)
    scale, zero = form.broadcast(integers.shape)
    return integers.double(), scale.double(), zero.double()


@pytest.mark.parametrize("scheme", ["per_channel_symmetric", "per_tensor_affine"])
@pytest.mark.parametrize("bits", [2, 4])
def test_it_is_nearly_the_best_of_all_roundings(scheme, bits):
    torch.manual_seed(0)
    layer = nn.Linear(9, 16, bias=False)
    dense = layer.weight.detach().double().clone()
    x = correlated(256, 9)
    options = {"damping": [1e-6]}
    quantizer = rounded(
        nn.Sequential(layer), x.split(32), options=options, quant_bits=bits, quant_scheme=scheme
    )
    integers, scale, zero = grid_of(quantizer, quantizer.wrappers[0])
    low = (dense / scale).floor() + zero
    qmin, qmax = (-(2 ** (bits - 1)) + 1, 2 ** (bits - 1) - 1)
    if scheme == "per_tensor_affine":
        qmin, qmax = 0, 2**bits - 1

    def errors(integers):
        change = (integers.clamp(qmin, qmax) - zero) * scale - dense
        return (change @ x.double().T).square().sum(-1)

    every = torch.stack(
        [errors(low + torch.tensor(up)) for up in itertools.product((0.0, 1.0), repeat=9)]
    )
    best, nearest = every.min(0).values, errors((dense / scale).round() + zero)
    found = errors(integers)
    assert bool(
        ((integers == low.clamp(qmin, qmax)) | (integers == (low + 1).clamp(qmin, qmax))).all()
    )
    assert bool((found <= nearest + 1e-4).all())
    assert float(found.sum()) < 1.3 * float(best.sum())
    if bits == 4:
        assert float(nearest.sum()) > 1.5 * float(best.sum())


LAYERS = {
    "linear": (nn.Linear(24, 16), ()),
    "conv1d": (nn.Conv1d(8, 12, 3, padding=1), (10,)),
    "conv2d": (nn.Conv2d(8, 12, 3, stride=2, padding=1), (8, 8)),
    "conv3d": (nn.Conv3d(4, 6, 2), (4, 4, 4)),
    "groups": (nn.Conv2d(8, 12, 3, groups=4, padding=1, padding_mode="reflect"), (8, 8)),
    "depthwise": (nn.Conv2d(8, 8, 3, groups=8, dilation=2), (8, 8)),
}


@pytest.mark.parametrize(
    "scheme", ["per_tensor_affine", "per_channel_symmetric", "per_group_affine"]
)
@pytest.mark.parametrize(
    "name", [n if n == "linear" else pytest.param(n, marks=pytest.mark.slow) for n in LAYERS]
)
@torch.no_grad()
def test_outputs_move_less_than_rounded_to_nearest_on_the_same_grid(name, scheme):
    layer, shape = copy.deepcopy(LAYERS[name])
    channels = layer.weight.shape[1] * getattr(layer, "groups", 1)
    dense, test = copy.deepcopy(layer).double(), correlated(64, channels, 1, *shape).double()
    model = nn.Sequential(layer)
    quantizer = rounded(model, correlated(128, channels, 0, *shape).split(16), quant_scheme=scheme)
    nearest = copy.deepcopy(dense)
    _, scale, zero = grid_of(quantizer, quantizer.wrappers[0])
    qmin, qmax = (-7, 7) if scheme.endswith("symmetric") else (0, 15)
    q = ((dense.weight / scale).round() + zero).clamp(qmin, qmax)
    nearest.weight.copy_((q - zero) * scale)
    error, plain = (
        float((each.double()(test) - dense(test)).square().sum())
        for each in (model.float(), nearest)
    )
    assert error < 0.75 * plain


def test_nothing_is_random():
    made = []
    for seed in (0, 1):
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 8))
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        rounded(model, correlated(64, 24).split(16))
        assert torch.equal(torch.get_rng_state(), before)
        made.append(model.state_dict())
    assert all(torch.equal(value, made[1][key]) for key, value in made[0].items())


def test_too_few_inputs_are_told_by_those_kept_apart():
    """Of 24 rows nothing is learned that holds for others: the layer is rounded to nearest."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32))
    dense = model[0].weight.detach().clone()
    with pytest.warns(UserWarning, match=r'1 of 1 layers were better rounded to nearest: "0"'):
        quantizer = rounded(model, torch.randn(4, 8, 64), options={"damping": [1e-3, 1e-2]})
    integers, scale, _ = grid_of(quantizer, quantizer.wrappers[0])
    assert torch.equal(integers, (dense / scale).round().clamp(-7, 7))
    assert quantizer.calibration_notes == {"0": "were better rounded to nearest"}


def test_layers_without_rows_are_told():
    model = nn.Sequential(nn.ConvTranspose2d(4, 6, 3), nn.Conv2d(6, 4, 3))
    with pytest.warns(UserWarning, match=r'1 of 2 layers were rounded to nearest: "0"'):
        rounded(model, torch.rand(4, 8, 4, 6, 6))


def test_a_channel_of_zeros_and_inputs_that_are_zero_stay():
    model = nn.Sequential(nn.Linear(12, 6))
    with torch.no_grad():
        model[0].weight[2] = 0
    x = correlated(64, 12)
    x[:, 3] = 0
    dense = model[0].weight.detach().clone()
    quantizer = rounded(model, x.split(16))
    assert not model[0].weight[2].any()
    integers, scale, _ = grid_of(quantizer, quantizer.wrappers[0])
    assert torch.equal(integers[:, 3], (dense / scale).round().clamp(-7, 7)[:, 3].double())


def test_inputs_are_quantized_too_and_it_is_exported(tmp_path):
    torch.manual_seed(0)
    make = lambda: nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()  # noqa: E731
    model, images = make(), torch.rand(8, 8, 4, 8, 8)
    quantizer = rounded(
        model, images, quant_types=["weight", "input"], quant_bits={"weight": 4, "input": 8}
    )
    quantizer.export_model(tmp_path / "model.pth", tmp_path / "ranges.json")
    loaded = engine.load_quantized(make(), tmp_path / "model.pth")
    for wrapper in quantizer.wrappers:
        assert float(wrapper.input_range[1]) > 0
    quantizer.unwrap(bake=True)
    assert torch.allclose(loaded(images[0]), model(images[0]), atol=1e-6)


class SmallResNet(nn.Module):
    """Three residual blocks, the second and the third with a stride."""

    def __init__(self):
        super().__init__()
        self.stem = self.normed(1, 16, 3, 1)
        sizes = ((16, 16, 1), (16, 32, 2), (32, 64, 2))
        self.blocks = nn.ModuleList(
            nn.ModuleList(
                (self.normed(a, b, 3, s), self.normed(b, b, 3, 1), self.normed(a, b, 1, s))
            )
            for a, b, s in sizes
        )
        self.head = nn.Linear(64, 10)

    @staticmethod
    def normed(a, b, kernel, stride):
        conv = nn.Conv2d(a, b, kernel, stride, kernel // 2, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(b))

    def forward(self, x):
        x = F.relu(self.stem(x))
        for first, second, beside in self.blocks:
            x = F.relu(beside(x) + second(F.relu(first(x))))
        return self.head(x.mean((2, 3)))


@pytest.mark.slow
@pytest.mark.parametrize("net", ["DigitsNet", "SmallResNet"])
@pytest.mark.parametrize("scheme", ["per_tensor_symmetric", "per_channel_symmetric"])
def test_networks_for_digits(net, scheme, monkeypatch):
    """Logits move by less than half of what rounding to nearest moves them, at 4 and 3 bits."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "docs" / "examples"))
    digits = __import__("digits_net")
    train, test = digits.load()
    torch.manual_seed(0)
    model = digits.DigitsNet() if net == "DigitsNet" else SmallResNet()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(6):
        digits.train_epoch(model, train, optimizer, generator)
    model.eval()
    batches = train[0][:512].split(64)
    with torch.no_grad():
        logits = model(test[0])
    for bits in (4, 3):
        moved, right = {}, {}
        for name in ("ptq", "ada_round"):
            copied = copy.deepcopy(model)
            rounded(copied, batches, name=name, quant_bits=bits, quant_scheme=scheme)
            with torch.no_grad():
                moved[name] = float((copied(test[0]) - logits).square().mean())
            right[name] = digits.accuracy(copied, test)
        assert moved["ada_round"] < 0.5 * moved["ptq"]
        assert right["ada_round"] > right["ptq"] - 0.5
        if bits == 3:
            assert right["ada_round"] > digits.accuracy(model, test) - 2
