"""The fraction removed is the fraction asked, for every pruner that is installed."""

import pytest
import torch
from models import ConvNet, images, pruner_plugins, settings_of, train_step, zeros
from torch import nn

from engine.pruning import Channels, FilterPruner, StatisticsFilterPruner

PROVIDERS = pruner_plugins("provider")
FILTERS = [plugin for plugin in PROVIDERS if issubclass(plugin.load(), FilterPruner)]
WEIGHTS_ONLY = [p for p in FILTERS if not issubclass(p.load(), StatisticsFilterPruner)]
name_of = [plugin.name for plugin in PROVIDERS]


def filters(plugins):
    return pytest.mark.parametrize("plugin", plugins, ids=[plugin.name for plugin in plugins])


def removed_filters(wrapper) -> int:
    return int((~Channels(wrapper.module).rows(wrapper.weight_mask).bool().any(dim=1)).sum())


def prune(plugin, model, batch, sparsity, **selection):
    """Attach and train until masks are there."""
    pruner = plugin.load()(model, **settings_of(plugin, sparsity, **selection))
    pruner.compress()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for epoch in range(3):
        pruner.update_epoch(epoch)
        for _ in range(3):
            train_step(model, optimizer, batch)
    return pruner


@filters(PROVIDERS)
@pytest.mark.parametrize("sparsity", [0.0, 0.29, 0.5, 0.9])
@pytest.mark.parametrize("bias", [True, False])
def test_every_pruner_removes_what_is_asked(plugin, sparsity, bias):
    model = ConvNet(bias)
    pruner = prune(plugin, model, images(), sparsity)
    wrappers = pruner.get_modules_wrapper()
    removed = sum(zeros(w.weight_mask) for w in wrappers)
    total = sum(w.weight.numel() for w in wrappers)
    one_each = sum(w.weight.numel() / Channels(w.module).count for w in wrappers)
    assert abs(removed - total * sparsity) < one_each
    for wrapper in wrappers:
        assert zeros(wrapper.weight) >= zeros(wrapper.weight_mask)
        assert not (wrapper.weight[wrapper.weight_mask == 0]).any()


@filters(FILTERS)
def test_filters_go_with_their_bias(plugin):
    model = ConvNet()
    pruner = prune(plugin, model, images(), 0.5)
    for wrapper in pruner.get_modules_wrapper():
        alive = Channels(wrapper.module).rows(wrapper.weight_mask).bool().any(dim=1)
        assert torch.equal(wrapper.bias_mask.bool(), alive)
        assert not wrapper.bias[~alive].any()


@filters(PROVIDERS)
def test_a_constant_model_loses_no_more_than_asked(plugin):
    model = ConvNet()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
    pruner = plugin.load()(model, **settings_of(plugin, 0.3))
    pruner.compress()
    model(images())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    for epoch in range(2):
        pruner.update_epoch(epoch)
        for _ in range(2):
            train_step(model, optimizer, images())
    wrappers = pruner.get_modules_wrapper()
    if issubclass(plugin.load(), FilterPruner):
        expected = [int(Channels(w.module).count * 0.3 + 1e-6) for w in wrappers]
        assert [removed_filters(w) for w in wrappers] == expected
    else:
        total = sum(w.weight.numel() for w in wrappers)
        removed = sum(zeros(w.weight_mask) for w in wrappers)
        assert abs(removed - 0.3 * total) <= len(wrappers)


LAYERS = {
    "Conv1d": (lambda: nn.Conv1d(4, 6, 3), (5, 4, 7)),
    "Conv2d": (lambda: nn.Conv2d(4, 6, 3), (5, 4, 7, 7)),
    "Conv3d": (lambda: nn.Conv3d(4, 6, 2), (5, 4, 4, 4, 4)),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2), (5, 4, 7, 7)),
    "depthwise": (lambda: nn.Conv2d(4, 8, 3, groups=4), (5, 4, 7, 7)),
    "ConvTranspose1d": (lambda: nn.ConvTranspose1d(4, 6, 3), (5, 4, 7)),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(4, 6, 3, groups=2), (5, 4, 7, 7)),
    "ConvTranspose3d": (lambda: nn.ConvTranspose3d(4, 6, 2), (5, 4, 4, 4, 4)),
    "Linear": (lambda: nn.Linear(4, 6), (5, 4)),
    "Embedding": (lambda: nn.Embedding(9, 6), None),
    "LayerNorm": (lambda: nn.LayerNorm(6), (5, 6)),
    "BatchNorm1d": (lambda: nn.BatchNorm1d(6), (5, 6)),
    "GroupNorm": (lambda: nn.GroupNorm(2, 6), (5, 6)),
}


@filters(FILTERS)
@pytest.mark.parametrize("layer", LAYERS)
def test_half_of_the_filters_of_every_kind_of_layer(plugin, layer):
    make, shape = LAYERS[layer]
    module = make()
    batch = torch.arange(9) if shape is None else torch.randn(shape)
    pruner = prune(plugin, nn.Sequential(module), batch, 0.5, op_types=[type(module).__name__])
    (wrapper,) = pruner.get_modules_wrapper()
    assert removed_filters(wrapper) == Channels(module).count // 2


@filters(FILTERS)
def test_bilinear_has_filters_too(plugin):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.pair = nn.Bilinear(3, 2, 6)

        def forward(self, x):
            return self.pair(x[:, :3], x[:, 3:])

    pruner = prune(plugin, Net(), torch.randn(5, 5), 0.5, op_types=["Bilinear"])
    assert removed_filters(pruner.get_modules_wrapper()[0]) == 3


@filters(PROVIDERS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_every_floating_dtype(plugin, dtype):
    model = ConvNet().to(dtype)
    pruner = prune(plugin, model, images().to(dtype), 0.5)
    wrappers = pruner.get_modules_wrapper()
    assert all(w.weight_mask.dtype == dtype for w in wrappers)
    removed = sum(zeros(w.weight_mask) for w in wrappers)
    total = sum(w.weight.numel() for w in wrappers)
    assert abs(removed - total / 2) < sum(
        w.weight.numel() / Channels(w.module).count for w in wrappers
    )


@pytest.mark.parametrize("change", ["half", "double", "bfloat16"])
def test_a_model_may_change_its_dtype_while_it_is_pruned(change):
    from plugins_builtin.level import LevelPruner

    model = nn.Linear(8, 8)
    LevelPruner(model, [{"sparsity": 0.5, "op_types": ["Linear"]}]).compress()
    getattr(model, change)()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    train_step(model, optimizer, torch.randn(4, 8).to(model.weight.dtype))
    assert zeros(model.weight) == 32


@filters(PROVIDERS)
def test_channels_last_and_tied_values(plugin):
    model = ConvNet().to(memory_format=torch.channels_last)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.mul(4).round())
    pruner = prune(plugin, model, images(), 0.5)
    removed = sum(zeros(w.weight_mask) for w in pruner.get_modules_wrapper())
    assert removed > 0


def test_a_mask_of_nothing_removes_nothing_and_of_one_layer_the_layer():
    from plugins_builtin.level import LevelPruner

    model = nn.Linear(10, 10)
    pruner = LevelPruner(model, [{"sparsity": 0.999, "op_types": ["Linear"]}])
    pruner.compress()
    assert zeros(model.weight) == 99
