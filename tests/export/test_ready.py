"""Exports of what is not attached or not done: said before anything is written."""

import warnings

import pytest
import torch
from torch import nn

import engine
from engine import ConfigError, ExportError
from engine.algorithms import AGPPruner, L1FilterPruner, LevelPruner, PTQQuantizer, QAT_Quantizer

PRUNED = [{"op_types": ["Linear"], "sparsity": 0.5}]
QUANTIZED = [{"op_types": ["Linear"], "quant_types": ["weight", "output"], "quant_bits": 6}]


def perceptron():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 2))


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda m: LevelPruner(m, PRUNED), "pruned"),
        (lambda m: QAT_Quantizer(m, QUANTIZED), "quantized"),
    ],
)
@pytest.mark.parametrize("unwrapped", [False, True])
def test_what_is_not_attached_is_not_exported(make, what, unwrapped, tmp_path):
    compressor = make(perceptron())
    if unwrapped:
        compressor.compress()
        compressor.unwrap()
    with pytest.raises(ExportError, match=f"call compress\\(\\) before a {what} model is exported"):
        compressor.export_model(tmp_path / "m.pth", tmp_path / "second")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "make", [lambda m: L1FilterPruner(m, PRUNED), lambda m: PTQQuantizer(m, QUANTIZED)]
)
def test_a_layer_that_was_replaced_is_named(make, tmp_path):
    model = perceptron()
    compressor = make(model)
    compressor.compress()
    model[0] = nn.Linear(5, 7)
    with pytest.raises(ExportError, match='layer "0" was replaced since compress'):
        compressor.export_model(tmp_path / "m.pth")
    assert not list(tmp_path.iterdir())


def test_masks_that_are_not_there_yet_are_said(tmp_path):
    model = nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    config = {"compressor": "activation_mean_rank_filter"}
    config["config_list"] = [{"op_types": ["Conv1d"], "sparsity": 0.5}]
    pruner = engine.create_compressor(model, config)
    pruner.compress()
    with pytest.warns(UserWarning, match='layer "0" has no mask yet'):
        pruner.export_model(tmp_path / "m.pth", tmp_path / "mask.pth")


def test_a_quantizer_that_saw_nothing_says_so_once_and_writes_no_ranges(tmp_path):
    model = perceptron().eval()
    quantizer = PTQQuantizer(model, QUANTIZED)
    quantizer.compress()
    with pytest.warns(UserWarning, match='output of layer "0" has no range yet'):
        model(torch.randn(3, 5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(torch.randn(3, 5))
    with pytest.raises(ExportError, match=r"never calibrated\n  call calibrate\(batches\)"):
        quantizer.export_model(tmp_path / "m.pth", tmp_path / "ranges.json")
    assert not list(tmp_path.iterdir())


def test_nan_gives_no_ranges_to_export(tmp_path):
    model = perceptron()
    quantizer = QAT_Quantizer(model, QUANTIZED)
    quantizer.compress()(torch.full((2, 5), torch.nan))
    with pytest.raises(ExportError, match="training mode after compress"):
        quantizer.export_model(tmp_path / "m.pth", tmp_path / "ranges.json")


def test_a_layer_without_a_range_is_named_and_null(tmp_path):
    model = perceptron()
    quantizer = QAT_Quantizer(model, QUANTIZED)
    quantizer.compress()[0](torch.randn(3, 5))
    with pytest.warns(UserWarning, match='the output of "2": null in the file'):
        quantizer.export_model(tmp_path / "m.pth", tmp_path / "ranges.json")


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(11, 6)
        self.head = nn.Linear(6, 11)
        self.head.weight = self.tokens.weight

    def forward(self, x):
        return self.head(self.tokens(x))


def test_half_of_a_tied_pair_is_refused_when_the_quantizer_is_made():
    entry = {**QUANTIZED[0], "quant_types": ["weight"], "op_types": ["Embedding"]}
    with pytest.raises(ConfigError, match='"tokens" is to be quantized and shares its weight with'):
        PTQQuantizer(Tied(), [entry])
    entry["op_types"] = ["Embedding", "Linear"]
    entry["quant_scheme"] = "per_tensor_symmetric"
    PTQQuantizer(Tied(), [entry])


def trained(calls):
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    entry = {"initial_sparsity": 0, "final_sparsity": 0.5, "start_epoch": 0, "end_epoch": 3}
    pruner = AGPPruner(model, [{**entry, "frequency": 1, "op_types": ["Linear"]}], optimizer)
    pruner.compress()
    for epoch in calls:
        pruner.update_epoch(epoch)
    model(torch.randn(4, 5)).sum().backward()
    optimizer.step()
    return pruner


def test_the_best_model_of_the_first_epoch_is_exported_without_a_word(tmp_path):
    pruner = trained([0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pruner.export_model(tmp_path / "m.pth")


@pytest.mark.parametrize("calls", [[], [0, 0, 0]])
def test_a_schedule_that_never_moved_says_so(calls, tmp_path):
    with pytest.warns(UserWarning, match="still at epoch 0"):
        trained(calls).export_model(tmp_path / "m.pth")


def test_after_speedup_and_training_the_model_is_written_and_masks_explained(tmp_path):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    pruner = L1FilterPruner(model, [{"op_names": ["0"], "sparsity": 0.5}])
    pruner.compress()
    model = pruner.apply_speedup(torch.randn(2, 6))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.randn(4, 6)).sum().backward()
    optimizer.step()
    with pytest.warns(UserWarning, match="there are no masks any more"):
        pruner.export_model("small.pt", mask_path="mask.pth", speedup=True, folder_name=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["small.pt"]
    fresh = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    loaded = engine.load_compressed(fresh, tmp_path / "small.pt")
    x = torch.randn(3, 6)
    assert torch.equal(loaded(x), model(x))
