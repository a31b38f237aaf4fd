"""What cannot be fitted is said, and leaves the model as it was."""

import copy

import pytest
import torch
import torch.nn.functional as F
from models import ConvNet, images
from torch import nn

import engine
from engine.algorithms import L1FilterPruner, LevelPruner
from engine.pruning import Reconstruction

ALL = [{"op_types": ["Conv2d", "Linear"], "sparsity": 0.5}]


def batches():
    return [images(32, seed) for seed in range(4)]


def test_a_failure_changes_no_weight():
    class Skips(ConvNet):
        skip = False

        def forward(self, x):
            x = self.relu1(self.bn1(self.conv1(x)))
            x = torch.zeros(len(x), 10, 3, 3) if self.skip else F.relu(self.bn2(self.conv2(x)))
            return self.fc(x.flatten(1))

    model = Skips()
    reconstruction = Reconstruction(model, batches())
    LevelPruner(model, ALL).compress()
    model.skip = True
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(
        engine.EngineError, match=r'"conv2" cannot .* ran 1 times before pruning and 0'
    ):
        reconstruction.apply()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_an_interrupt_changes_no_weight_and_leaves_no_hook():
    model, left = ConvNet(), 11

    def forward(model, batch):
        nonlocal left
        left -= 1
        if not left:
            raise KeyboardInterrupt
        model(batch)

    reconstruction = Reconstruction(model, batches(), forward)
    LevelPruner(model, ALL).compress()
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(KeyboardInterrupt):
        reconstruction.apply()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_model_that_has_become_smaller_is_refused():
    model = ConvNet()
    reconstruction = Reconstruction(model, batches())
    entry = [{"op_names": ["conv1"], "sparsity": 0.5}]
    pruner = L1FilterPruner(model, entry, dependency_aware=True, dummy_input=images())
    pruner.compress()
    pruner.apply_speedup(images())
    with pytest.raises(engine.EngineError, match=r'"conv1" cannot .*, 6\] and are .*, 3\]\n'):
        reconstruction.apply()


def test_inputs_that_a_layer_before_chooses_are_refused():
    class Gate(nn.Module):
        def __init__(self):
            super().__init__()
            self.score, self.expert = nn.Linear(4, 1), nn.Linear(4, 4)

        def forward(self, x):
            return self.expert(x[self.score(x)[:, 0] > 0.1])

    torch.manual_seed(0)
    model = Gate()
    reconstruction = Reconstruction(model, [torch.randn(40, 4)])
    with torch.no_grad():
        model.score.weight[:, 1:] = 0
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(engine.EngineError, match=r'"expert" cannot be fitted: sizes of its input'):
        reconstruction.apply()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_damping_below_the_rounding_is_named():
    torch.manual_seed(0)
    model = nn.Linear(64, 3)
    reconstruction = Reconstruction(model, [100 * torch.randn(8, 64)], damping=1e-14)
    with pytest.raises(engine.EngineError, match="damping of 1e-14 is lost in the rounding"):
        reconstruction.apply()


def test_what_is_not_finite_is_named():
    model = ConvNet()
    bad = images()
    bad[0] = torch.inf
    reconstruction = Reconstruction(model, [images(), bad], points=1000)
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(engine.EngineError, match=r'"conv1" cannot be fitted: .* NaN or infinity'):
        reconstruction.apply()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("model", "given", "message"),
    [
        (ConvNet(), {"batches": []}, "a reconstruction got no batches"),
        (nn.Sequential(nn.ReLU()), {"batches": batches()}, "no convolution or linear layer ran"),
        (ConvNet(), {"batches": batches(), "points": 0}, "points >= 1"),
        (ConvNet(), {"batches": batches(), "points": 2.5}, "got 2.5 and None"),
        (ConvNet(), {"batches": batches(), "damping": 0.0}, "damping > 0"),
        (ConvNet(), {"batches": batches(), "damping": float("inf")}, "finite damping"),
        (ConvNet(), {"batches": batches(), "damping": "1"}, "damping > 0"),
        (ConvNet(), {"batches": {"x": images()}}, "a reconstruction got dict in place of batches"),
        (ConvNet(), {"batches": None}, "a reconstruction got NoneType in place of batches"),
        (
            ConvNet(),
            {"batches": images()},
            r"a batch \(.*\) does not go through the model: expected 4D",
        ),
        (nn.Sequential(nn.LazyLinear(4)), {"batches": batches()}, "lazy layers without weights"),
    ],
)
def test_what_cannot_be_done_is_refused(model, given, message):
    with pytest.raises(engine.EngineError, match=message):
        Reconstruction(model, **given)
