"""Speedup: smaller, with the same outputs, or unchanged with a reason."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.algorithms import AGPPruner, L1FilterPruner, LevelPruner, SlimPruner
from engine.speedup import SpeedupError, channel_blocks, compare, drop_constants, speedup


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.a = nn.Conv2d(8, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        return self.head((x + self.b(F.relu(self.a(x)))).mean((2, 3)))


class Gate(nn.Module):
    """Squeeze and excitation: a broadcast multiplication."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, bias=False)
        self.down, self.up = nn.Linear(8, 4), nn.Linear(4, 8)
        self.out = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.conv(x))
        gate = torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3))))))
        return self.out(x * gate[:, :, None, None])


class Shuffle(nn.Module):
    """Channel shuffle by views, depthwise and grouped convolutions, an uneven concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 1)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8)
        self.grouped = nn.Conv2d(8, 12, 1, groups=2)
        self.side = nn.Conv2d(3, 5, 3)
        self.last = nn.Conv2d(17, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(F.relu(self.first(x)))
        n, c, h, w = y.shape
        y = y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.last(torch.cat([self.grouped(y), self.side(x)], 1))


class Attention(nn.Module):
    """Fused query, key and value; the sizes of the view are attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.width = 4, 6
        self.norm = nn.LayerNorm(24)
        self.qkv, self.proj = nn.Linear(24, 72), nn.Linear(24, 24)
        self.up, self.down = nn.Linear(24, 48), nn.Linear(48, 24)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        qkv = self.qkv(self.norm(x)).view(b, n, 3, self.heads, self.width)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, -1)
        x = x + self.proj(y)
        return x + self.down(F.gelu(self.up(x)))


class Transposed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 8, 3, stride=2)
        self.up = nn.ConvTranspose2d(8, 6, 3, stride=2, groups=2)
        self.out = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.up(F.relu(self.down(x)))))


class Recurrent(nn.Module):
    """The same layer several times, Python control flow, two outputs in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.loop, self.leave = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor, *, steps: int = 3) -> dict[str, Tensor]:
        h = torch.tanh(self.enter(x))
        for i in range(steps):
            if i % 2 == 0:
                h = torch.tanh(self.loop(h))
        return {"out": self.leave(h), "norm": h.norm()}


IMAGE = (2, 3, 9, 9)
ZOO: list[tuple[type[nn.Module], tuple[int, ...]]] = [
    (Residual, IMAGE),
    (Gate, IMAGE),
    (Shuffle, IMAGE),
    (Attention, (2, 5, 24)),
    (Transposed, IMAGE),
]


def made(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """Return a float64 model in evaluation mode whose norms have real statistics."""
    torch.manual_seed(seed)
    model = make().double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean):
                nn.init.normal_(tensor, 0.5, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model


def half_masked(model: nn.Module, x: Tensor) -> nn.Module:
    """Set half of the channels of every block of bound layers to zero."""
    with torch.no_grad():
        for block in channel_blocks(model, x):
            for channel in block.channels[: len(block.channels) // 2]:
                for part in channel:
                    if isinstance(part.tensor, nn.Parameter):
                        part.tensor.index_fill_(part.dim, torch.tensor(part.indices), 0)
    return model


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("make", "shape"), ZOO, ids=lambda value: getattr(value, "__name__", ""))
def test_half_of_the_channels_go_and_the_outputs_stay(
    make: type[nn.Module], shape: tuple[int, ...]
) -> None:
    x = torch.randn(shape, dtype=torch.float64)
    model = half_masked(made(make), x)
    other = torch.randn(shape, dtype=torch.float64)
    expected, before = model(other), parameters(model)
    report = speedup(model, x)
    assert report.parameters_before == before
    assert report.parameters_after == parameters(model) <= 0.8 * before
    torch.testing.assert_close(model(other), expected, rtol=1e-10, atol=1e-12)


# Half of the test's comparison is by weights that are zero, which a transposed weight's are not.
@pytest.mark.parametrize(("make", "shape"), ZOO[:4], ids=lambda v: getattr(v, "__name__", ""))
def test_gradients_of_kept_weights_stay(make: type[nn.Module], shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, dtype=torch.float64)
    model = half_masked(made(make), x)
    masked = copy.deepcopy(model)
    speedup(model, x)
    for each in (masked, model):
        each(x).square().sum().backward()
    for (name, small), (_, full) in zip(
        model.named_parameters(), masked.named_parameters(), strict=True
    ):
        kept = full.grad[full.detach() != 0]
        ours = small.grad[small.detach() != 0]
        torch.testing.assert_close(ours, kept, rtol=1e-8, atol=1e-10, msg=lambda m, n=name: n + m)


def test_masks_of_single_layers_are_reconciled_not_refused() -> None:
    model = made(Residual)
    x = torch.randn(IMAGE, dtype=torch.float64)
    pruner = L1FilterPruner(model, [{"op_types": ["Conv2d"], "sparsity": 0.5}])
    pruner.compress()
    expected = model(x)
    pruner.apply_speedup(x)
    torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-12)
    kept = {layer.name: layer.kept for layer in pruner.speedup_report.layers if layer.kept}
    # What stem and b do not both lose stays.
    assert kept == {
        "stem": "2 of 4: b computes it from the input",
        "b": "2 of 4: stem computes it from the input",
    }
    assert model.a.weight.shape == (4, 6, 3, 3)


def test_one_channel_carries_the_constants_of_all_that_go_before_padding() -> None:
    """Folding into the bias would be wrong at the border: sigmoid(0) is not zero there."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 10, 3), nn.Sigmoid(), nn.Conv2d(10, 4, 3, padding=1, bias=False)
    ).double()
    with torch.no_grad():
        model[0].weight[:6] = 0
    x = torch.randn(IMAGE, dtype=torch.float64)
    expected = model(x)
    speedup(model, x)
    assert model[0].weight.shape[0] == model[2].weight.shape[1] == 5
    torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-12)


def test_a_new_bias_has_as_many_elements_as_filters_stay() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.Sigmoid(), nn.Conv2d(8, 6, 1, bias=False), nn.Conv2d(6, 2, 1)
    ).double()
    with torch.no_grad():
        model[0].weight[:4] = 0
        model[2].weight[:3] = 0
        model[3].weight[:, :3] = 0
    x = torch.randn(IMAGE, dtype=torch.float64)
    expected = model(x)
    speedup(model, x)
    assert model[2].weight.shape == (3, 4, 1, 1)
    assert model[2].bias.shape == (3,)
    torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-12)


def test_dropping_constants_lets_padded_channels_go() -> None:
    model = made(Residual)
    x = torch.randn(IMAGE, dtype=torch.float64)
    pruner = L1FilterPruner(model, [{"op_names": ["a"], "sparsity": 0.5}])
    pruner.compress()
    pruner.apply_speedup(x, drop_constants=True)
    assert model.a.weight.shape == (4, 8, 3, 3)
    assert model.b.weight.shape == (8, 4, 3, 3)
    assert model.a.out_channels == model.b.in_channels == 4


def test_a_constant_is_folded_where_that_is_exact() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Sigmoid(), nn.Linear(6, 3, bias=False)).double()
    with torch.no_grad():
        model[0].weight[:2] = 0
    x = torch.randn(5, 4, dtype=torch.float64)
    expected = model(x)
    speedup(model, x)
    assert model[0].weight.shape == (4, 4)
    assert model[2].bias is not None
    torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-14)


def test_a_layer_used_several_times_is_exact() -> None:
    model = made(Recurrent)
    with torch.no_grad():
        model.enter.weight[:3] = model.loop.weight[:3] = 0
        model.enter.bias[:3] = model.loop.bias[:3] = 0
    x = torch.randn(5, 4, dtype=torch.float64)
    expected = model(x, steps=4)
    speedup(model, x, {"steps": 4})
    torch.testing.assert_close(model(x, steps=4), expected, rtol=1e-10, atol=1e-12)


def test_slim_masks_go_with_the_filters_before_them() -> None:
    model = made(Residual)
    x = torch.randn(IMAGE, dtype=torch.float64)
    pruner = SlimPruner(model, [{"op_types": ["default"], "sparsity": 0.5}])
    pruner.compress()
    with torch.no_grad():
        for wrapper in pruner.get_modules_wrapper():
            dead = wrapper.weight_mask == 0
            model.b.weight[dead] = 0
            model.b.bias[dead] = 0
    expected = model(x)
    pruner.apply_speedup(x)
    assert model.stem.weight.shape[0] == 4
    torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_training_goes_on_with_the_optimizer_state_of_what_is_left(kind: str) -> None:
    model = made(Gate).train()
    optimizer: torch.optim.Optimizer = (
        torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
        if kind == "sgd"
        else torch.optim.Adam(model.parameters(), 0.01)
    )
    pruner = AGPPruner(
        model,
        [{"op_names": ["conv"], "final_sparsity": 0.5, "end_epoch": 1}],
        optimizer,
        pruning_algorithm="l1_filter",
    )
    pruner.compress()
    x = torch.randn(IMAGE, dtype=torch.float64)

    def step() -> None:
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()

    pruner.update_epoch(1)
    step()
    pruner.apply_speedup(x)
    assert model.training
    assert {id(p) for p in optimizer.param_groups[0]["params"]} == {
        id(p) for p in model.parameters()
    }
    for parameter in model.parameters():
        for value in optimizer.state[parameter].values():
            assert (
                not isinstance(value, Tensor)
                or value.dim() == 0
                or (value.shape == parameter.shape)
            )
    step()


def test_unstructured_masks_remove_nothing_and_say_nothing_went() -> None:
    model = made(Residual)
    x = torch.randn(IMAGE, dtype=torch.float64)
    pruner = LevelPruner(model, [{"op_types": ["Conv2d"], "sparsity": 0.5}])
    pruner.compress()
    pruner.apply_speedup(x)
    report = pruner.speedup_report
    assert report.parameters_after == report.parameters_before


def test_a_wholly_masked_layer_keeps_one_channel() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.zero_()
    x = torch.randn(5, 4, dtype=torch.float64)
    expected = model(x)
    speedup(model, x)
    assert model[0].weight.shape == (1, 4)
    torch.testing.assert_close(model(x), expected)


def frozen(model: nn.Module) -> dict[str, Any]:
    return {name: (id(p), p.detach().clone()) for name, p in model.named_parameters()}


@pytest.mark.parametrize("drop", [False, True])
def test_example_inputs_that_do_not_fit_leave_the_model_and_pruner_as_they_were(drop: bool) -> None:
    model = made(Residual)
    pruner = L1FilterPruner(model, [{"op_types": ["Conv2d"], "sparsity": 0.5}])
    pruner.compress()
    before = frozen(model)
    with pytest.raises(Exception, match=r"size|channels|shape"):
        pruner.apply_speedup(torch.randn(2, 4, 9, 9, dtype=torch.float64), drop_constants=drop)
    after = frozen(model)
    assert all(
        before[n][0] == after[n][0] and torch.equal(before[n][1], after[n][1]) for n in before
    )
    assert pruner.get_modules_wrapper()[0].weight_mask is not None


class Baked(nn.Module):
    """A size that stands in the code, not in an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.a(x)).view(-1, 2, 4).flatten(1))


def test_a_size_in_the_code_keeps_its_channels_and_the_report_says_why() -> None:
    model = made(Baked)
    with torch.no_grad():
        model.a.weight[:4] = model.a.bias[:4] = 0
    x = torch.randn(3, 4, dtype=torch.float64)
    expected = model(x)
    report = speedup(model, x)
    torch.testing.assert_close(model(x), expected)
    assert report.layers[0].kept == "4 of 4: its size is written into the model's code"


def test_a_wrong_rule_cannot_get_through(monkeypatch: pytest.MonkeyPatch) -> None:
    """The outputs are compared before the smaller model is handed over."""
    difference = compare.Difference("outputs are off", None)
    monkeypatch.setattr(compare, "difference", lambda *args: difference)
    model = made(Gate)
    x = torch.randn(IMAGE, dtype=torch.float64)
    half_masked(model, x)
    before = frozen(model)
    with pytest.raises(SpeedupError, match="outputs are off"):
        speedup(model, x)
    assert {n: v[0] for n, v in before.items()} == {n: v[0] for n, v in frozen(model).items()}
    assert model.conv.out_channels == 8


def test_blocks_name_what_goes_together() -> None:
    model = made(Residual)
    blocks = channel_blocks(model, torch.randn(IMAGE, dtype=torch.float64))
    bound = {frozenset(n.split(".")[0] for n in b.names) for b in blocks}
    assert bound == {
        frozenset({"stem", "norm", "a", "b", "head"}),
        frozenset({"a", "b"}),
    }


class Bias(nn.Module):
    """A bias that the model computes from constants, as relative positions are."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.randn(6, 3))
        self.positions = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 6, bias=False))
        self.leave = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(x + self.positions(self.table))


def test_what_is_computed_from_constants_alone_is_not_lost() -> None:
    model = made(Bias)
    with torch.no_grad():
        model.positions[0].weight[:3] = model.positions[0].bias[:3] = 0
    x = torch.randn(6, 6, dtype=torch.float64)
    expected = model(x)
    speedup(model, x)
    assert model.positions[0].weight.shape == (5, 3)
    torch.testing.assert_close(model(x), expected)


def test_drop_constants_touches_only_channels_without_filters() -> None:
    model = made(Residual)
    with torch.no_grad():
        model.a.weight[:2] = 0
    bias = model.a.bias.detach().clone()
    x = torch.randn(IMAGE, dtype=torch.float64)
    assert drop_constants(model, x) == 2
    assert torch.equal(model.a.bias[:2], torch.zeros(2, dtype=torch.float64))
    assert torch.equal(model.a.bias[2:], bias[2:])


@pytest.mark.parametrize("wrap", [torch.jit.script, torch.compile])
def test_compiled_models_are_refused_with_what_to_do(wrap: Callable[..., Any]) -> None:
    model = wrap(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
    with pytest.raises(SpeedupError, match="speed up the model that it was made from"):
        speedup(model, torch.randn(2, 4))
