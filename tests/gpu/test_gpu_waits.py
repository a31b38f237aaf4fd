"""Once nothing is due any more, no training step waits for the device on our account."""

import pytest
import torch
from runs import ALGORITHMS, CPU, CountWaits, at_rest, moving, subject
from torch import nn

from engine import Compressor
from engine.algorithms import LevelPruner, LSQQuantizer, QAT_Quantizer
from engine.plugins import registry
from engine.testing.networks import perceptron
from engine.testing.settings import extension_arguments
from engine.testing.subject import Subject


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor) -> None:
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_step_waits_for_nothing(name: str, device: torch.device, count_waits: CountWaits) -> None:
    of = subject(name)
    model, _, optimizer = at_rest(of, device)
    x = of.inputs(7, model)[0]
    assert not count_waits(lambda: steps(model, optimizer, x))


@pytest.mark.parametrize(
    "settings",
    [
        {"quant_scheme": "per_channel_symmetric"},
        {"quant_scheme": {"weight": "per_group_affine"}, "quant_group_size": 8},
        {"quant_types": ["weight", "input", "output"]},
    ],
    ids=lambda settings: "-".join(settings),
)
@pytest.mark.parametrize("cls", [QAT_Quantizer, LSQQuantizer])
def test_other_grids_wait_for_nothing_either(
    cls: type[Compressor], settings: dict, device: torch.device, count_waits: CountWaits
) -> None:
    entry = {"op_types": ["Linear"], "quant_types": ["weight", "input"], "quant_bits": 8}
    if cls is LSQQuantizer and "per_group" in str(settings):
        pytest.skip("lsq has no groups")
    model = perceptron(16).to(device)
    optimizer = moving(model)
    cls(model, [entry | settings], optimizer).compress()
    x = torch.randn(4, 16).to(device)
    steps(model, optimizer, x)
    assert not count_waits(lambda: steps(model, optimizer, x))


@pytest.mark.parametrize("fold", ["fused", "unfused"])
def test_folded_norms_wait_for_nothing(
    fold: str, device: torch.device, count_waits: CountWaits
) -> None:
    of = subject("qat")
    model = of.model().to(device)
    optimizer = moving(model)
    entry = {"op_types": ["Conv2d"], "quant_types": ["weight", "output"], "quant_bits": 8}
    QAT_Quantizer(model, [entry], optimizer, fold_batch_norm=fold).compress()
    x = of.inputs(7, model)[0]
    steps(model, optimizer, x)
    assert not count_waits(lambda: steps(model, optimizer, x))


def test_pruned_and_quantized_waits_for_nothing(
    device: torch.device, count_waits: CountWaits
) -> None:
    model = perceptron(16).to(device)
    optimizer = moving(model)
    LevelPruner(model, [{"op_types": ["Linear"], "sparsity": 0.5}], optimizer).compress()
    entry = {"op_types": ["Linear"], "quant_types": ["weight", "input"], "quant_bits": 8}
    QAT_Quantizer(model, [entry], optimizer).compress()
    x = torch.randn(4, 16).to(device)
    steps(model, optimizer, x)
    assert not count_waits(lambda: steps(model, optimizer, x))


@pytest.mark.parametrize("plugin", registry.extensions(), ids=lambda plugin: str(plugin.name))
def test_an_extension_waits_for_nothing_between_its_looks(
    plugin: registry.Plugin,
    device: torch.device,
    count_waits: CountWaits,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("extension"))
    of = subject("l1_filter")
    extension = Subject(plugin).cls(**{**extension_arguments(plugin), **_rarely(plugin)})
    model, _, optimizer = at_rest(of, device, extensions=[extension])
    x = of.inputs(7, model)[0]
    assert not count_waits(lambda: steps(model, optimizer, x))


def _rarely(plugin: registry.Plugin) -> dict[str, int]:
    return {"every": 0} if "every" in plugin.schema["properties"] else {}


def test_a_wait_is_counted(device: torch.device, count_waits: CountWaits) -> None:
    x = torch.ones(4).to(device)
    assert sum(count_waits(lambda: (x.sum().item(), x[x > 0], x.to(CPU))).values()) == 3
