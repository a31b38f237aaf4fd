"""One layer at a time is pruned and measured, once, and the model is as it was."""

from __future__ import annotations

import copy
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from models import ConvNet, images, mlp, zeros
from torch import Tensor, nn

from engine import CheckpointError, ConfigError, EngineError, ExportError, PluginError
from engine.algorithms import L2FilterPruner
from engine.analysis import SensitivityAnalysis


def zeros_of(model: nn.Module) -> Callable[[], int]:
    """Return a metric that is known beforehand: how many weights are zero."""
    return lambda: sum(zeros(p) for name, p in model.named_parameters() if "weight" in name)


class Failing:
    """A metric that raises at one of its calls, and counts them."""

    def __init__(self, metric: Callable[[], float], at: int = 0) -> None:
        self.metric, self.at, self.calls = metric, at, 0

    def __call__(self) -> float:
        self.calls += 1
        if self.calls == self.at:
            raise RuntimeError("out of patience")
        return self.metric()


def unchanged(model: nn.Module, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_each_layer_alone_is_pruned_to_each_sparsity() -> None:
    model = ConvNet()
    found = SensitivityAnalysis(model, zeros_of(model), [0.5, 0.2]).analysis()
    # 6 filters of 9 weights, 10 of 54, 4 of 90; int(filters * sparsity) of them are zero.
    assert found == {
        "conv1": {0.2: 1 * 9, 0.5: 3 * 9},
        "conv2": {0.2: 2 * 54, 0.5: 5 * 54},
        "fc": {0.2: 0, 0.5: 2 * 90},
    }
    assert [list(row) for row in found.values()] == [[0.2, 0.5]] * 3


def test_by_default_a_tenth_to_nine_tenths_go() -> None:
    model = mlp(4, 10, 2)
    found = SensitivityAnalysis(model, zeros_of(model), prune_type="level").analysis()
    assert list(found["0"]) == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    assert found["0"][0.3] == int(40 * 0.3)


@pytest.mark.parametrize("prune_type", ["l1", "l2", "fpgm", "level", "slim", L2FilterPruner])
def test_pruning_algorithms_are_found_by_any_of_their_names(prune_type) -> None:
    model = ConvNet()
    before = copy.deepcopy(model.state_dict())
    found = SensitivityAnalysis(model, zeros_of(model), [0.5], prune_type).analysis()
    assert all(metrics[0.5] > 0 for metrics in found.values())
    assert unchanged(model, before)


def test_an_algorithm_that_ranks_by_activations_sees_one_evaluation_first() -> None:
    model = ConvNet()

    def metric() -> int:
        model.eval()
        model(images())
        return zeros_of(model)()

    counted = Failing(metric)
    analysis = SensitivityAnalysis(model, counted, [0.5], "activation_mean_rank_filter")
    assert analysis.analysis(specified_layers=["conv2"]) == {"conv2": {0.5: 5 * 54}}
    assert counted.calls == 3


def test_an_algorithm_that_needs_gradients_says_so() -> None:
    model = ConvNet()
    before = copy.deepcopy(model.state_dict())
    analysis = SensitivityAnalysis(model, zeros_of(model), [0.5], "taylor_fo_weight_filter")
    with pytest.raises(PluginError, match='no mask for layer "conv1": it ranks by what it sees'):
        analysis.analysis()
    assert unchanged(model, before)


def test_the_metric_is_given_its_arguments() -> None:
    model = ConvNet()
    analysis = SensitivityAnalysis(model, lambda a, b: zeros_of(model)() + a * b, [0.5])
    found = analysis.analysis((2,), {"b": 100}, ["conv1"])
    assert found == {"conv1": {0.5: 227}}
    assert analysis.base == 200


def test_the_model_is_restored_whatever_the_metric_does_to_it() -> None:
    model = ConvNet().train()
    model.bn2.eval()
    before = copy.deepcopy(model.state_dict())

    def trains() -> float:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model.train()
        loss = model(images()).square().mean()
        loss.backward()
        optimizer.step()
        return loss

    SensitivityAnalysis(model, trains, [0.3, 0.6]).analysis()
    assert unchanged(model, before)
    assert model.training
    assert not model.bn2.training
    assert not model.__dict__.get("_engine_compressors")


@pytest.mark.parametrize("at", [1, 2, 4])
def test_the_model_is_restored_after_an_exception_of_the_metric(at: int) -> None:
    model = ConvNet()
    before = copy.deepcopy(model.state_dict())
    analysis = SensitivityAnalysis(model, Failing(zeros_of(model), at), [0.3, 0.6])
    with pytest.raises(RuntimeError, match="out of patience"):
        analysis.analysis()
    assert unchanged(model, before)
    assert analysis.analysis()["conv1"] == {0.3: 9, 0.6: 27}


@pytest.mark.parametrize(
    ("mode", "value", "sparsities"),
    [
        ("minimize", -10, [0.2, 0.4]),  # -9, -18
        ("maximize", -10, [0.2]),
        ("dropped", 18, [0.2, 0.4, 0.6]),  # 0 - 18 is not passed by -18 but by -27
        ("raised", -30, [0.2]),
        ("raised", 0, [0.2, 0.4, 0.6, 0.8]),
    ],
)
def test_a_layer_is_left_after_the_metric_that_stops_it(mode, value, sparsities) -> None:
    model = ConvNet()
    metric = zeros_of(model)
    analysis = SensitivityAnalysis(
        model, lambda: -metric(), [0.2, 0.4, 0.6, 0.8], "l1", mode, value
    )
    found = analysis.analysis(specified_layers=["conv1"])
    assert list(found["conv1"]) == sparsities


def test_a_killed_analysis_goes_on_and_measures_nothing_twice(tmp_path) -> None:
    model, file = ConvNet(), tmp_path / "progress.json"
    killed = Failing(zeros_of(model), at=4)
    with pytest.raises(RuntimeError):
        SensitivityAnalysis(model, killed, [0.2, 0.5], progress=file).analysis()
    assert json.loads(file.read_text())["layers"] == {"conv1": {"0.2": 9.0, "0.5": 27.0}}
    rest = Failing(zeros_of(model))
    found = SensitivityAnalysis(model, rest, [0.2, 0.5], progress=file).analysis()
    assert rest.calls == 4
    assert found == SensitivityAnalysis(model, zeros_of(model), [0.2, 0.5]).analysis()
    again = Failing(zeros_of(model))
    assert SensitivityAnalysis(model, again, [0.2, 0.5], progress=file).analysis() == found
    assert again.calls == 0


def test_a_resumed_analysis_stops_early_where_the_first_one_did(tmp_path) -> None:
    model, file = ConvNet(), tmp_path / "progress.json"
    metric = Failing(zeros_of(model))
    for _ in range(2):
        analysis = SensitivityAnalysis(
            model, metric, [0.2, 0.5, 0.8], "l1", "maximize", 20, progress=file
        )
        assert analysis.analysis(specified_layers=["conv1"]) == {"conv1": {0.2: 9, 0.5: 27}}
    assert metric.calls == 3


def test_a_progress_file_of_something_else_is_refused(tmp_path) -> None:
    model, file = ConvNet(), tmp_path / "p.json"
    SensitivityAnalysis(model, zeros_of(model), [0.5], progress=file).analysis()
    with pytest.raises(CheckpointError, match=r"sparsities: \[0.5\] in the file, \[0.4\] now"):
        SensitivityAnalysis(model, zeros_of(model), [0.4], progress=file)
    with pytest.raises(CheckpointError, match='prune_type: "l1_filter" in the file, "level" now'):
        SensitivityAnalysis(model, zeros_of(model), [0.5], "level", progress=file)
    with torch.no_grad():
        model.bn1.running_mean[0] += 1
    with pytest.raises(CheckpointError, match=r"belongs to another analysis(.|\n)*model: "):
        SensitivityAnalysis(model, zeros_of(model), [0.5], progress=file)
    for text in (
        "{",
        "[]",
        '{"format": 1}',
        '{"format": 9, "settings": {}, "base": 1, "layers": 2}',
    ):
        file.write_text(text)
        with pytest.raises(CheckpointError, match=r"p\.json"):
            SensitivityAnalysis(model, zeros_of(model), [0.5], progress=file)


def test_other_weights_are_measured_anew() -> None:
    model = mlp(3, 4, 2)
    analysis = SensitivityAnalysis(model, zeros_of(model), [0.5])
    state = {key: torch.zeros_like(value) for key, value in model.state_dict().items()}
    assert analysis.analysis()["0"][0.5] == 6
    analysis.load_state_dict(state)
    assert analysis.sensitivities == {}
    assert analysis.analysis()["0"][0.5] == 20
    assert unchanged(model, state)
    with pytest.raises(CheckpointError, match="does not fit"):
        analysis.load_state_dict({"0.weight": torch.zeros(1)})


def test_csv_has_shorter_rows_where_a_layer_was_stopped(tmp_path) -> None:
    model = ConvNet()
    analysis = SensitivityAnalysis(model, zeros_of(model), [0.2, 0.5], "l1", "maximize", 100)
    analysis.analysis()
    analysis.export(tmp_path / "s.csv")
    assert (tmp_path / "s.csv").read_text().splitlines() == [
        "layername,0.2,0.5",
        "conv1,9.0,27.0",
        "conv2,108.0",
        "fc,0.0,180.0",
    ]


def test_the_plot_has_a_line_for_each_layer(tmp_path) -> None:
    pytest.importorskip("matplotlib", reason="the extra plot is not installed")
    model = ConvNet()
    analysis = SensitivityAnalysis(model, zeros_of(model), [0.2, 0.5])
    with pytest.raises(ExportError, match="nothing to draw"):
        analysis.plot(tmp_path / "s.svg")
    analysis.analysis()
    analysis.plot(tmp_path / "s.svg")
    drawing = (tmp_path / "s.svg").read_text()
    assert all(f"<!-- {name} -->" in drawing for name in ("conv1", "conv2", "fc", "unpruned"))
    with pytest.raises(ExportError, match=r"must end in \.png"):
        analysis.plot(tmp_path / "s.jpeg")


def test_without_matplotlib_the_extra_is_named(tmp_path: Path, monkeypatch) -> None:
    model = ConvNet()
    analysis = SensitivityAnalysis(model, zeros_of(model), [0.5])
    analysis.analysis()
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ExportError, match=r"engine\[plot\]"):
        analysis.plot(tmp_path / "s.png")


@pytest.mark.parametrize("value", [None, "0.5", math.nan, torch.ones(2), torch.tensor(math.nan)])
def test_a_metric_that_is_no_number_is_an_error(value) -> None:
    with pytest.raises(EngineError, match="must return a number that is not NaN, for the model as"):
        SensitivityAnalysis(ConvNet(), lambda: value).analysis()


def test_an_infinite_metric_is_a_number() -> None:
    found = SensitivityAnalysis(ConvNet(), lambda: torch.tensor([math.inf]), [0.5]).analysis()
    assert found["fc"] == {0.5: math.inf}


def test_layers_that_cannot_be_pruned_are_refused_with_the_nearest_names() -> None:
    analysis = SensitivityAnalysis(ConvNet(), lambda: 0, [0.5])
    with pytest.raises(EngineError) as error:
        analysis.analysis(specified_layers=["conv3", "relu1", "fc"])
    assert str(error.value) == (
        "l1_filter cannot prune:\n"
        '  "conv3": the model has no such layer; did you mean "conv2"?\n'
        '  "relu1": layer "relu1" (ReLU) has no weight of its own\n'
        "  it prunes: conv1, conv2, fc"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sparsities": [0.5, 1.0]}, r"above 0 and below 1, got \[1.0\]"),
        ({"sparsities": []}, "above 0 and below 1"),
        ({"prune_type": "l11_filter"}, 'did you mean "l1_filter"'),
        ({"prune_type": "agp"}, '"agp" is a schedule\n  allowed: .*l1_filter'),
        ({"prune_type": "qat"}, '"qat" is a quantizer'),
        ({"prune_type": nn.Linear}, "Linear is no pruner"),
        ({"early_stop_mode": "drop", "early_stop_value": 1}, 'did you mean "dropped"'),
        ({"early_stop_mode": "dropped"}, "give both or neither"),
        ({"early_stop_value": 0.1}, "give both or neither"),
        ({"early_stop_mode": "dropped", "early_stop_value": "1"}, "is a number, got '1'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(arguments, message) -> None:
    with pytest.raises(EngineError, match=message):
        SensitivityAnalysis(ConvNet(), lambda: 0, **arguments)


def test_a_model_with_nothing_to_prune_is_refused() -> None:
    with pytest.raises(ConfigError, match="matches no layer"):
        SensitivityAnalysis(nn.Sequential(nn.ReLU()), lambda: 0)


def test_a_model_that_is_one_layer_can_be_analysed() -> None:
    model = nn.Linear(4, 10)
    found = SensitivityAnalysis(model, lambda: zeros(model.weight), [0.5]).analysis()
    assert found == {"": {0.5: 20}}
