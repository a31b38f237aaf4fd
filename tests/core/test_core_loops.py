"""Training loops that are not the usual one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from engine import CheckpointError, ExportError, create_compressor
from engine.algorithms import AGPPruner, LevelPruner, QAT_Quantizer, SlimPruner
from engine.files import write_whole

ENTRY = [{"op_types": ["default"], "sparsity": 0.5}]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def loss(model: nn.Module) -> torch.Tensor:
    torch.manual_seed(1)
    return model(torch.randn(16, 6)).square().mean()


def slim(model: nn.Module, optimizer: torch.optim.Optimizer | None) -> SlimPruner:
    pruner = SlimPruner(model, ENTRY, optimizer, regular_scale=0.05, training_epochs=1)
    pruner.compress()
    return pruner


@pytest.mark.parametrize("given", [True, False])
def test_a_closure_gets_the_same_penalty_as_a_plain_step(given: bool) -> None:
    results = []
    for with_closure in (False, True):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        slim(model, optimizer if given else None)

        def closure(model: nn.Module = model, optimizer: torch.optim.SGD = optimizer):
            optimizer.zero_grad()
            value = loss(model)
            value.backward()
            return value

        for _ in range(3):
            if with_closure:
                optimizer.step(closure)
            else:
                closure()
                optimizer.step()
        results.append(model[1].weight.detach().clone())
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)


def test_two_optimizers_that_take_turns_are_one_step() -> None:
    model = network()
    first = torch.optim.SGD(model[:2].parameters(), lr=0.1)
    second = torch.optim.SGD(model[2:].parameters(), lr=0.1)
    entry = {"op_types": ["Linear"], "quant_types": ["weight"], "quant_bits": 8}
    quantizer = QAT_Quantizer(model, [{**entry, "quant_start_step": 5}])
    quantizer.compress()
    for _ in range(4):
        loss(model).backward()
        first.step()
        second.step()
    assert quantizer.steps == 4


def test_an_optimizer_that_was_made_anew_takes_over() -> None:
    model = network()
    given = torch.optim.SGD(model.parameters(), lr=0.1)
    entry = {"op_types": ["Linear"], "final_sparsity": 0.5, "end_epoch": 2}
    AGPPruner(model, [entry], given).compress()
    pruner = AGPPruner(network(), [entry], torch.optim.SGD(network().parameters(), lr=0.1))
    pruner.compress()
    rebuilt = torch.optim.SGD(pruner.bound_model.parameters(), lr=0.1)
    for epoch in range(3):
        pruner.update_epoch(epoch)
        for _ in range(3):
            loss(pruner.bound_model).backward()
            rebuilt.step()
    assert (pruner.bound_model[0].weight == 0).sum() == 24


def test_step_applies_masks_to_weights_that_were_changed_by_hand() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = LevelPruner(model, ENTRY, optimizer)
    pruner.compress()
    loss(model).backward()
    optimizer.step()
    for parameter in model.parameters():
        parameter.data.add_(1)
    pruner.step()
    assert (model[0].weight == 0).sum() == 24


def qat() -> QAT_Quantizer:
    entry = {"op_types": ["Linear"], "quant_types": ["weight"], "quant_bits": 8}
    quantizer = QAT_Quantizer(network(), [entry])
    quantizer.compress()
    return quantizer


@pytest.mark.parametrize(
    "damage",
    [
        lambda s: s.update(wrappers="x"),
        lambda s: s.update(epoch="x"),
        lambda s: s.update(extra=[]),
        lambda s: s.update(extra=[{}]),
        lambda s: s["wrappers"]["0"].update(buffers=[]),
        lambda s: s["wrappers"]["0"]["attributes"].update(module=5),
        lambda s: s["wrappers"]["0"]["attributes"].update(weight_qmax=15),
        lambda s: s["wrappers"]["0"]["buffers"].pop("weight_scale"),
        lambda s: s["wrappers"]["0"]["buffers"].update(weight_mask="x"),
        lambda s: s["wrappers"]["0"]["buffers"].update(weight_mask=torch.full((8, 6), 0.5)),
    ],
)
def test_a_damaged_state_is_refused_and_nothing_is_changed(damage) -> None:
    quantizer = qat()
    loss(quantizer.bound_model)
    before = quantizer.state_dict()
    state = quantizer.state_dict()
    state["wrappers"]["0"]["buffers"]["weight_scale"] = torch.tensor(7.0)
    damage(state)
    with pytest.raises(CheckpointError):
        quantizer.load_state_dict(state)
    after = quantizer.state_dict()
    assert after["wrappers"]["0"]["attributes"] == before["wrappers"]["0"]["attributes"]
    for key, value in before["wrappers"]["0"]["buffers"].items():
        now = after["wrappers"]["0"]["buffers"][key]
        assert (value is None and now is None) or torch.equal(value, now)


def test_a_weight_that_only_one_of_its_layers_quantizes_is_not_exported(tmp_path) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Bilinear(4, 4, 4))
    model[0].weight = nn.Parameter(torch.randn(4, 4))
    other = nn.Linear(4, 4)
    other.weight = model[0].weight
    model.append(nn.Linear(4, 4))
    entry = {"op_names": ["0"], "quant_types": ["weight"], "quant_bits": 8}
    quantizer = QAT_Quantizer(model, [entry])
    quantizer.compress()
    model[3] = other  # tied since then: before, the quantizer would not have been made
    with pytest.raises(ExportError, match='shares its weight with "3"'):
        quantizer.export_model(tmp_path / "model.pth")
    assert not list(tmp_path.iterdir())


def test_a_link_stays_a_link_and_a_device_is_not_replaced(tmp_path) -> None:
    target = tmp_path / "real.txt"
    target.write_text("old")
    (tmp_path / "link.txt").symlink_to(target)
    write_whole(tmp_path / "link.txt", lambda path: path.write_text("new"))
    assert (tmp_path / "link.txt").is_symlink()
    assert target.read_text() == "new"
    with pytest.raises(ExportError, match="no regular file"):
        write_whole("/dev/null", lambda path: path.write_text("new"))
    with pytest.raises(ExportError, match="a file's path is needed"):
        write_whole(5, lambda path: path.write_text("new"))


def test_extensions_can_be_given_beside_a_configuration() -> None:
    config = {"compressor": "level", "config_list": ENTRY}
    assert create_compressor(network(), config, extensions=[]).extensions == ()
