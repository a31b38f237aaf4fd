"""Batch norms folded into the weights that are rounded: as inference will compute it."""

import copy

import pytest
import torch
import torch.nn.functional as F
from models import ConvNet, images, train_step
from torch import nn

from engine import QuantType, load_quantized
from engine.algorithms import PTQQuantizer, QAT_Quantizer
from engine.quantization import Scheme, fake_quantize
from engine.quantization.batch_norm import channel_factor, fold_into_bias, norm_pairs

WEIGHT = [{"op_types": ["Conv2d", "Linear"], "quant_types": ["weight"], "quant_bits": 4}]
BOTH = [{**WEIGHT[0], "quant_types": ["weight", "output"]}]


def seasoned(model: nn.Module) -> nn.Module:
    """A model whose norms have done something, one of them turning signs."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.normal_()
                module.running_var.uniform_(0.1, 4)
                module.weight.normal_()
                module.bias.normal_()
    return model


def qat(model, variant="fused", entries=WEIGHT, optimizer=None, **more):
    quantizer = QAT_Quantizer(model, entries, optimizer, fold_batch_norm=variant, **more)
    quantizer.compress()
    return quantizer


# -- which norms -------------------------------------------------------------------------------


class Branches(nn.Module):
    """Norms that may be folded, and norms that may not."""

    def __init__(self):
        super().__init__()
        self.norm_first = nn.BatchNorm2d(3)
        self.conv = nn.Conv2d(3, 4, 1)
        self.bn = nn.BatchNorm2d(4)
        self.read_twice = nn.Conv2d(4, 4, 1)
        self.bn_of_read_twice = nn.BatchNorm2d(4)
        self.after_relu = nn.Conv2d(4, 4, 1)
        self.bn_after_relu = nn.BatchNorm2d(4)
        self.called_twice = nn.Conv2d(4, 4, 1)
        self.bn_of_called_twice = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 5)
        self.bn_of_fc = nn.BatchNorm1d(5)
        self.bare = nn.Linear(5, 6)
        self.no_statistics = nn.BatchNorm1d(6, track_running_stats=False)

    def forward(self, x):
        x = self.bn(self.conv(self.norm_first(x)))
        y = self.read_twice(x)
        x = y + self.bn_of_read_twice(y)
        x = self.bn_after_relu(F.relu(self.after_relu(x)))
        x = self.bn_of_called_twice(self.called_twice(self.called_twice(x)))
        return self.no_statistics(self.bare(self.bn_of_fc(self.fc(x.mean((2, 3))))))


def named_pairs(model):
    names = {module: name for name, module in model.named_modules()}
    return {names[layer]: names[norm] for layer, norm in norm_pairs(model).items()}


def test_only_a_norm_that_alone_reads_a_layer_is_folded_into_it():
    assert named_pairs(Branches()) == {"conv": "bn", "fc": "bn_of_fc"}
    assert named_pairs(ConvNet()) == {"conv1": "bn1", "conv2": "bn2"}


def test_of_a_model_that_cannot_be_traced_sequences_are_known():
    class Untraceable(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.ReLU())
            self.conv = nn.Conv2d(2, 2, 1)
            self.bn = nn.BatchNorm2d(2)

        def forward(self, x):
            x = self.body(x)
            return self.bn(self.conv(x)) if x.sum() > 0 else x

    assert named_pairs(Untraceable()) == {"body.0": "body.1"}


def test_looking_for_pairs_changes_nothing():
    model = ConvNet()
    before = copy.deepcopy(model.state_dict())
    norm_pairs(model)
    assert model.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


# -- what is rounded ---------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["fused", "unfused"])
@pytest.mark.parametrize(
    "scheme", ["per_tensor_affine", "per_channel_symmetric", "per_group_affine"]
)
def test_the_output_is_that_of_the_folded_and_then_rounded_convolution(variant, scheme):
    torch.manual_seed(3)
    model = seasoned(ConvNet()).eval()
    plain = copy.deepcopy(model)
    qat(model, variant, [{**WEIGHT[0], "quant_scheme": scheme, "op_names": ["conv2"]}])
    x = torch.randn(2, 6, 8, 8)
    # By hand: fold, round, convolve, add the folded bias.
    conv, norm = plain.conv2, plain.bn2
    sigma = (norm.running_var + norm.eps).sqrt()
    folded = conv.weight * (norm.weight / sigma).view(-1, 1, 1, 1)
    axis = None if "tensor" in scheme else 0
    kind = "symmetric" in scheme
    grid = Scheme(4, kind, kind, axis, 32 if "group" in scheme else None)
    arranged = grid.arranged(folded)
    scale, zero = grid.parameters(*grid.extremes(arranged))
    rounded = grid.restored(
        fake_quantize(arranged, scale, zero, grid.qmin, grid.qmax), folded.shape
    )
    bias = norm.bias + (conv.bias - norm.running_mean) * norm.weight / sigma
    torch.testing.assert_close(fold_into_bias(conv, norm), bias.detach())
    want = F.conv2d(x, rounded, bias, stride=2)
    torch.testing.assert_close(model.bn2(model.conv2(x)), want, rtol=1e-4, atol=1e-4)


def test_the_integers_of_a_folded_weight_are_those_of_the_fold():
    model = seasoned(ConvNet())
    quantizer = qat(model)
    wrapper = next(w for w in quantizer.wrappers if w.name == "conv2")
    form = quantizer.affine_form(wrapper, QuantType.WEIGHT)
    assert torch.equal(form.values(form.integers(model.conv2.weight)), model.conv2.weight)
    # Times the factor, all channels have one scale: what an export of the fold writes.
    factor = channel_factor(model.bn2)
    assert (factor < 0).any()
    torch.testing.assert_close(form.scale * factor, (form.scale * factor)[:1].expand(10))
    assert (form.scale * factor > 0).all()


def test_a_norm_that_turns_a_channel_off_leaves_it_at_zero():
    model = ConvNet()
    with torch.no_grad():
        model.bn2.weight[:3] = 0
    qat(model)
    assert (model.conv2.weight[:3] == 0).all()
    assert (model.conv2.weight[3:].flatten(1) != 0).any(dim=1).all()
    model(images()).sum().backward()
    assert model.conv2._parameters["weight"].grad.isfinite().all()


def test_fused_statistics_are_those_of_the_rounded_layer_and_unfused_of_the_float_one():
    plain = ConvNet()
    x = images()
    plain(x)
    for variant in ("fused", "unfused"):
        torch.manual_seed(0)
        model = ConvNet()
        model.load_state_dict({**plain.state_dict(), **_fresh_norms(model)})
        qat(model, variant)
        model(x)
        same = torch.allclose(model.bn1.running_mean, plain.bn1.running_mean, atol=1e-6)
        assert same == (variant == "unfused")


def _fresh_norms(model):
    return {k: v for k, v in model.state_dict().items() if "running" in k or "num_batches" in k}


def test_unfused_training_adds_what_rounding_changes_behind_the_norm():
    torch.manual_seed(2)
    model = seasoned(ConvNet())
    plain = copy.deepcopy(model)
    qat(model, "unfused", [{**WEIGHT[0], "op_names": ["conv1"]}])
    x = images()
    y, q = plain.conv1(x), F.conv2d(x, model.conv1.weight, plain.conv1.bias, padding=1)
    mean, var = y.mean((0, 2, 3)), y.var((0, 2, 3), correction=0)
    view = (1, -1, 1, 1)
    sigma = (var + plain.bn1.eps).sqrt().view(view)
    want = (q - mean.view(view)) / sigma * plain.bn1.weight.view(view) + plain.bn1.bias.view(view)
    torch.testing.assert_close(model.bn1(model.conv1(x)), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("variant", ["none", "fused", "unfused"])
def test_every_variant_trains_and_comes_off_without_a_trace(variant):
    model = ConvNet()
    before = {name: vars(layer).keys() for name, layer in model.named_modules()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    quantizer = qat(model, variant, BOTH, optimizer)
    start = model.conv1._parameters["weight"].detach().clone()
    for seed in range(3):
        train_step(model, optimizer, images(seed=seed))
    assert not torch.equal(model.conv1._parameters["weight"], start)
    quantizer.unwrap()
    for name, layer in model.named_modules():
        assert vars(layer).keys() == before[name]
        assert not layer._forward_hooks
        assert not layer._forward_pre_hooks


@pytest.mark.parametrize("variant", ["fused", "unfused"])
def test_the_output_of_a_folded_layer_is_that_of_its_norm(variant):
    model = ConvNet()
    quantizer = qat(model, variant, BOTH)
    model(images())
    model.eval()
    after_norm = model.bn1(model.conv1(images(seed=1)))
    assert len(after_norm.unique()) <= 16
    assert len(model.conv1(images(seed=1)).unique()) > 16
    wrapper = quantizer.wrappers[0]
    low, high = wrapper.output_range
    assert low <= after_norm.min() + wrapper.output_scale
    assert high >= after_norm.max() - wrapper.output_scale


def test_a_copy_folds_its_own_norm():
    model = seasoned(ConvNet()).eval()
    qat(model, entries=BOTH)
    other = copy.deepcopy(model)
    assert torch.equal(other(images()), model(images()))
    with torch.no_grad():
        other.bn1.running_var.mul_(torch.arange(1.0, 7))
    assert not torch.equal(other.conv1.weight, model.conv1.weight)
    assert torch.equal(other.conv2.weight, model.conv2.weight)


def test_the_exported_file_loads_into_a_plain_model_with_its_norms(tmp_path):
    model = seasoned(ConvNet()).eval()
    quantizer = qat(model)
    quantizer.export_model(tmp_path / "model.pth", tmp_path / "calibration.json")
    fresh = load_quantized(ConvNet(), tmp_path / "model.pth").eval()
    assert torch.equal(fresh.conv2.weight, model.conv2.weight)
    assert torch.equal(fresh(images()), model(images()))


def test_post_training_quantization_folds_by_default():
    torch.manual_seed(4)
    model = seasoned(ConvNet())
    with torch.no_grad():
        model.bn2.weight[0] = 100.0
    entry = {**WEIGHT[0], "quant_scheme": "per_tensor_affine", "op_names": ["conv2"]}
    factor = channel_factor(model.bn2)
    plain = model.conv2.weight.detach().clone()
    PTQQuantizer(model, [entry]).compress()
    folded = model.conv2.weight.detach() * factor.view(-1, 1, 1, 1)
    assert len((folded / folded.abs().max()).mul(1e4).round().unique()) <= 16
    assert not torch.allclose(model.conv2.weight, plain, atol=1e-3)


# -- freezing ----------------------------------------------------------------------------------


def freezing(**when):
    model = ConvNet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    return model, optimizer, qat(model, "none", BOTH, optimizer, **when)


def test_norms_keep_their_statistics_after_so_many_steps():
    model, optimizer, quantizer = freezing(freeze_norms_step=2)
    seen = []
    for step in range(4):
        train_step(model, optimizer, images(seed=step))
        seen.append(model.bn1.running_mean.clone())
    assert not torch.equal(seen[0], seen[1])
    assert torch.equal(seen[1], seen[2])
    assert torch.equal(seen[2], seen[3])
    model.train()
    assert not torch.equal(model.bn1(torch.ones(2, 6, 3, 3)), torch.zeros(2, 6, 3, 3))
    quantizer.unwrap()
    assert model.bn1.training
    train_step(model, optimizer, images())
    assert not torch.equal(model.bn1.running_mean, seen[3])


def test_ranges_stand_still_from_an_epoch_on():
    model, optimizer, quantizer = freezing(freeze_ranges_epoch=1)
    wrapper = quantizer.wrappers[0]
    ranges = []
    for epoch in range(3):
        quantizer.update_epoch(epoch)
        train_step(model, optimizer, images(seed=epoch) * (1 + epoch))
        ranges.append(wrapper.output_range.clone())
    assert torch.equal(ranges[0], ranges[1])
    assert torch.equal(ranges[1], ranges[2])


@pytest.mark.parametrize("what", ["norms", "ranges"])
@pytest.mark.parametrize(("unit", "number"), [("step", 2), ("epoch", 1)])
def test_what_is_frozen_is_frozen_after_resuming(what, unit, number):
    def frozen(model, quantizer):
        before = model.bn1.running_mean.clone(), quantizer.wrappers[0].output_range.clone()
        model.train()
        model(5 * images(seed=9))
        after = model.bn1.running_mean, quantizer.wrappers[0].output_range
        return torch.equal(*(pair[what == "ranges"] for pair in (before, after)))

    when = {f"freeze_{what}_{unit}": number}
    model, optimizer, quantizer = freezing(**when)
    for epoch in range(2):
        quantizer.update_epoch(epoch)
        train_step(model, optimizer, images(seed=epoch))
    states = copy.deepcopy(model.state_dict()), copy.deepcopy(quantizer.state_dict())
    assert frozen(model, quantizer)
    other, _, resumed = freezing(**when)
    fresh = copy.deepcopy(resumed.state_dict())
    other.load_state_dict(states[0])
    resumed.load_state_dict(states[1])
    assert frozen(other, resumed)
    resumed.load_state_dict(fresh)
    assert not frozen(other, resumed)
