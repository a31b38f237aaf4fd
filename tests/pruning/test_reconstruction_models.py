"""Models of many kinds: which layers are fitted, and what runs them."""

import collections
import copy

import pytest
import torch
import torch.nn.functional as F
from models import ConvNet, images, mlp
from torch import nn

from engine.algorithms import LevelPruner
from engine.pruning import Reconstruction

ALL = [{"op_types": ["Conv2d", "Linear"], "sparsity": 0.5}]


def batches():
    return [images(32, seed) for seed in range(4)]


class Scaled(nn.Linear):
    """Its outputs are not its weight times its inputs."""

    def forward(self, x):
        return 3 * super().forward(x / x.norm())


class Padded(nn.Conv2d):
    def forward(self, x):
        return super().forward(F.pad(x, (0, 1, 0, 1)))


def parametrized_bias():
    layer = nn.Linear(4, 4)
    nn.utils.parametrize.register_parametrization(layer, "bias", nn.Tanh())
    return layer


def shared_bias():
    layer = nn.Linear(4, 4)
    layer.user = nn.Linear(4, 4)
    layer.user.bias = layer.bias
    return layer


@pytest.mark.parametrize(
    "make",
    [
        lambda: Scaled(4, 4),
        lambda: Padded(4, 4, 3),
        parametrized_bias,
        shared_bias,
        lambda: nn.Linear(4, 4, dtype=torch.complex64),
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
    ],
)
def test_layers_that_compute_something_else_are_left_alone(make):
    torch.manual_seed(0)
    odd = make()
    before = nn.Linear(4, 4)
    model = nn.Sequential(before, nn.Linear(4, 4))
    x = torch.randn(9, 4)
    model.add_module("odd", odd)
    model.forward = lambda x: odd_call(odd, model[1](model[0](x)))
    state = copy.deepcopy(odd.state_dict())
    reconstruction = Reconstruction(model, [x])
    with torch.no_grad():
        before.weight[:2] = 0
    assert [refit.layer for refit in reconstruction.apply()] == ["0", "1"]
    assert all(torch.equal(value, state[key]) for key, value in odd.state_dict().items())


def odd_call(layer, x):
    if isinstance(layer, nn.Conv2d):
        return layer(x.view(1, 4, 3, 3))
    return layer(x.to(next(layer.parameters()).dtype))


def test_a_hook_on_an_output_is_no_part_of_the_layer():
    torch.manual_seed(0)
    plain = mlp(6, 8, 3)
    hooked = copy.deepcopy(plain)[:1].append(copy.deepcopy(plain)[2])
    hooked[0].register_forward_hook(lambda module, inputs, output: output.relu())
    x = torch.randn(60, 6)
    refits = []
    for model in (plain, hooked):
        reconstruction = Reconstruction(model, [x])
        with torch.no_grad():
            model[0].weight[:, :3] = 0
        refits.append([refit[1:] for refit in reconstruction.apply()])
    assert refits[0] == refits[1]


def test_layers_called_with_keywords_and_forwards_that_catch_exceptions():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
            self.caught = 0

        def forward(self, x):
            try:
                x = self.first(input=x)
            except Exception:
                self.caught += 1
            return self.second(input=x)

    torch.manual_seed(0)
    model = Odd()
    reconstruction = Reconstruction(model, [torch.randn(20, 4)])
    with torch.no_grad():
        model.first.weight[:, 0] = 0
    refits = reconstruction.apply()
    assert [refit.after < refit.before for refit in refits] == [True, True]
    assert model.caught == 0


def test_random_numbers_within_a_model_are_the_same_again():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            x = self.first(x)
            return self.second(x + torch.randn_like(x))

    reconstruction = Reconstruction(Noisy(), [torch.randn(20, 4), torch.randn(20, 4)])
    torch.manual_seed(5)
    assert max(refit.before for refit in reconstruction.apply()) < 1e-12


@pytest.mark.parametrize("whole", [True, False])
def test_compiled_models_are_fitted_like_others(whole):
    model = ConvNet().eval()
    compiled = torch.compile(model, backend="eager") if whole else model
    if not whole:
        model.compile(backend="eager")
    with torch.no_grad():
        compiled(images(32))
    reconstruction = Reconstruction(compiled, batches())
    LevelPruner(model, ALL).compress()
    refits = reconstruction.apply()
    assert [refit.layer.removeprefix("_orig_mod.") for refit in refits] == ["conv1", "conv2", "fc"]
    assert refits[1].after < refits[1].before


def test_autocast_around_is_that_of_the_model_alone():
    def half(model, batch):
        with torch.autocast("cpu", torch.bfloat16):
            model(batch)

    refits = []
    for around in (True, False):
        torch.manual_seed(0)
        model = ConvNet()
        reconstruction = Reconstruction(model, batches(), half)
        LevelPruner(model, ALL).compress()
        with torch.autocast("cpu", torch.bfloat16, enabled=around):
            refits.append(reconstruction.apply())
    assert refits[0] == refits[1]


def test_empty_batches_add_nothing():
    refits = []
    for extra in ([], [images(0)]):
        torch.manual_seed(0)
        model = ConvNet()
        reconstruction = Reconstruction(model, [images(32), *extra])
        LevelPruner(model, ALL).compress()
        refits.append(reconstruction.apply())
    assert refits[0] == refits[1]
    nothing = Reconstruction(ConvNet(), [images(0)]).apply()
    assert all(refit[1:] == (0, 0) for refit in nothing)


def test_keyword_batches_and_a_forward_of_ones_own():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 2), nn.Linear(3, 2)

        def forward(self, left, right):
            return self.a(left) + self.b(right)

    left, right = torch.randn(2, 9, 3)
    model = Two()
    by_name = Reconstruction(model, [{"left": left, "right": right}])
    by_hand = Reconstruction(model, [(left, right)], lambda model, batch: model(*batch))
    with torch.no_grad():
        model.a.weight[:, 0] = 0
    state = copy.deepcopy(model.state_dict())
    first = by_name.apply()
    model.load_state_dict(state)
    assert by_hand.apply() == first


def test_a_block_runs_as_often_as_its_own_layers_need():
    runs = collections.Counter()

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 6)

        def forward(self, x):
            runs[self] += 1
            return x + self.down(torch.tanh(self.up(x)))

    torch.manual_seed(0)
    model = nn.Sequential(*(Block() for _ in range(6)))
    reconstruction = Reconstruction(model, [torch.randn(10, 6) for _ in range(4)])
    LevelPruner(model, [{"op_types": ["Linear"], "sparsity": 0.5}]).compress()
    runs.clear()
    reconstruction.apply()
    # Of each of four batches once for each layer and once to be finished; one pass to look ahead.
    assert set(runs.values()) <= {1 + 4 * 2, 1 + 4 * 3}
