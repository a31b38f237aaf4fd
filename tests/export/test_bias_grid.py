"""Biases of channels whose weight scale says nothing of them."""

import pytest
import torch
from integers import entry, program_of, run_file
from torch import nn

from engine.algorithms import L1FilterPruner, PTQQuantizer
from engine.export.bias_grid import LARGEST, fitted

INT8, UINT8 = (-128, 127), (0, 255)


def fit(rows, scale, bias, *, zero=0, limits=INT8, source=1.0, output=1.0):
    dtype = torch.int8 if limits == INT8 else torch.uint8
    values = torch.tensor(rows, dtype=dtype)
    zeros = torch.full((len(rows),), zero)
    return fitted(values, torch.tensor(scale), zeros, limits, torch.tensor(bias), source, output)


def test_a_channel_of_zeros_takes_the_scale_that_its_bias_needs():
    found = fit([[0, 0], [0, 0]], [1.0, 1.0], [0.4, 1e8])
    assert abs((0.4 / found.scale[0]).round() * found.scale[0] - 0.4) <= 1 / 32
    assert 1e8 / found.scale[1] <= LARGEST
    assert found.values.tolist() == [[0, 0], [0, 0]]
    assert found.fits


def test_zeros_of_an_affine_channel_are_its_zero_point():
    found = fit([[7, 7]], [1.0], [0.3], zero=7, limits=UINT8)
    assert found.values.tolist() == [[7, 7]]
    assert found.scale[0] <= 1 / 16


def test_a_small_channel_is_counted_in_smaller_steps_without_changing_a_value():
    found = fit([[3, -2], [100, 1]], [0.5, 0.5], [0.2, 0.2])
    assert found.scale.tolist() == [0.5 / 8, 0.5]  # three times 16 has room, 100 has none
    assert found.values.tolist() == [[24, -16], [100, 1]]


def test_room_is_counted_from_the_zero_point():
    found = fit([[129, 126]], [0.5], [0.1], zero=128, limits=UINT8)
    assert found.values.tolist() == [[128 + 8, 128 - 16]]


def test_weights_next_to_nothing_make_room_for_their_bias():
    found = fit([[127, -64]], [1e-30], [2.0], source=0.1)
    assert 2.0 / (found.scale.double() * 0.1) <= LARGEST
    assert found.values.tolist() == [[0, 0]]
    assert found.fits


def test_a_scale_that_suits_its_bias_stays():
    found = fit([[127, -3]], [1e-3], [0.25])
    assert not found.changed
    assert found.scale.tolist() == torch.tensor([1e-3]).tolist()


def test_a_bias_that_no_grid_holds_is_said_not_to_fit():
    assert not fit([[127, 100]], [3.0], [0.4]).fits


def convolutions(scheme, prepare, x, **settings):
    torch.manual_seed(3)
    model = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 3, 1)).eval()
    with torch.no_grad():
        prepare(model)
    quantizer = PTQQuantizer(model, [entry(weights=scheme, op_types=["Conv2d"], **settings)])
    quantizer.compress()
    quantizer.calibrate([x])
    return model, quantizer


def one_huge(model):
    # Behind the ReLU it is 0 for what is never negative; the others have its scale.
    model[0].weight.mul_(1e-3)
    model[0].weight[2] = -50.0
    model[0].bias.copy_(torch.tensor([0.3, 0.31, -5.0, 0.07, 0.22, 0.11]))


def dead(model):
    model[0].weight.mul_(0.01)
    model[0].weight[1::2] = 0
    model[0].bias.copy_(torch.tensor([0.1, 0.33, 0.2, 0.47, 0.1, 0.29]))


def denormal(model):
    model[0].weight[::2] *= 1e-39
    model[0].weight[1] *= 1e-30
    model[0].bias.copy_(torch.tensor([0.0, 0.33, 0.2, 0.47, 1e-9, 0.29]))


@pytest.mark.slow
@pytest.mark.parametrize("prepare", [one_huge, dead, denormal])
@pytest.mark.parametrize(
    "scheme",
    ["per_tensor_affine", "per_tensor_symmetric", "per_channel_affine", "per_channel_symmetric"],
)
def test_files_keep_biases_that_the_scale_says_nothing_of(prepare, scheme, tmp_path):
    x = torch.rand(3, 2, 7, 5, generator=torch.Generator().manual_seed(4)) * 200
    model, quantizer = convolutions(scheme, prepare, x)
    quantizer.export_model(tmp_path / "m.pth", None, tmp_path / "m.onnx", input_shape=[1, 2, 7, 5])
    with torch.no_grad():
        expected = model(x)
    file, _ = run_file(tmp_path / "m.onnx", x)
    assert (file - expected).abs().max() <= 0.015 * expected.abs().max()


def test_a_pruned_and_normed_layer_on_pixels_keeps_its_constants(tmp_path):
    torch.manual_seed(5)
    layers = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4)
    model = nn.Sequential(*layers, nn.ReLU(), nn.Flatten(), nn.Linear(64, 5))
    x = torch.rand(6, 1, 8, 8) * 255
    model(x)
    pruner = L1FilterPruner(model.eval(), [{"op_types": ["Conv2d"], "sparsity": 0.5}])
    pruner.compress()
    quantizer = PTQQuantizer(model, [entry(op_types=["Conv2d", "Linear"])])
    quantizer.compress()
    quantizer.calibrate([x])
    quantizer.export_model(tmp_path / "m.pth", None, tmp_path / "m.onnx", input_shape=[1, 1, 8, 8])
    with torch.no_grad():
        expected = model.eval()(x)
    file, _ = run_file(tmp_path / "m.onnx", x)
    assert (file - expected).abs().max() <= 0.02 * expected.abs().max()


class Twice(nn.Module):
    """Reads one layer on two grids: its weight is shared, its biases' grids are not."""

    def __init__(self):
        super().__init__()
        self.layer, self.last = nn.Conv1d(2, 2, 1), nn.Conv1d(2, 2, 1)

    def forward(self, x):
        return self.last(torch.relu(self.layer(torch.relu(self.layer(x)))))


def test_a_layer_that_is_called_twice_has_a_scale_for_each_call():
    torch.manual_seed(6)
    model = Twice().eval()
    with torch.no_grad():
        model.layer.weight[0] = 0
        model.layer.bias.copy_(torch.tensor([0.4, 0.1]))
    x = torch.rand(4, 2, 9) * 100
    quantizer = PTQQuantizer(model, [entry(op_types=["Conv1d"])])
    quantizer.compress()
    quantizer.calibrate([x])
    output, _ = program_of(quantizer, x)
    with torch.no_grad():
        expected = model(x)
    assert (output - expected).abs().max() <= 0.02 * expected.abs().max()
