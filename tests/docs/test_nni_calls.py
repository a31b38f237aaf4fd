"""Calls as scripts for NNI 2.0 make them, by position and by name, work unchanged."""

import pytest
import torch
import torch.nn.functional as F
from models import ConvNet, images
from torch import nn

import engine
from engine.algorithms import (
    ADMMPruner,
    AutoCompressPruner,
    BNNQuantizer,
    DoReFaQuantizer,
    LotteryTicketPruner,
    NetAdaptPruner,
    SimulatedAnnealingPruner,
    SlimPruner,
)
from engine.analysis import count_flops_params

CONVOLUTIONS = [{"sparsity": 0.3, "op_types": ["Conv2d"]}]


def loop(model, optimizer, criterion=F.cross_entropy, epoch=0, callback=None):
    optimizer.zero_grad()
    criterion(model(images()), torch.arange(6) % 4).backward()
    if callback is not None:
        callback()
    optimizer.step()


def evaluator(model):
    model.eval()
    with torch.no_grad():
        return float(model(images()).softmax(1).amax(1).mean())


def trainer(model, optimizer, criterion, epoch, callback):
    model.train()
    loop(model, optimizer, criterion, epoch, callback)


def test_lottery_tickets(tmp_path):
    model = ConvNet()
    start = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    config = [{"prune_iterations": 2, "sparsity": 0.8, "op_types": ["default"]}]
    pruner = LotteryTicketPruner(model, config, optimizer)
    pruner.compress()
    for _ in pruner.get_prune_iterations():
        pruner.prune_iteration_start()
        loop(model, optimizer)
    pruner.bound_model.load_state_dict(model.state_dict())
    pruner.load_model_state_dict(start)
    pruner.export_model(str(tmp_path / "ticket.pth"), str(tmp_path / "mask.pth"))
    ticket = torch.load(tmp_path / "ticket.pth", weights_only=True)["conv2.weight"]
    assert (ticket == 0).sum() == int(ticket.numel() * 0.8)
    assert torch.equal(ticket[ticket != 0], start["conv2.weight"][ticket != 0])


@pytest.mark.parametrize("cls", [BNNQuantizer, DoReFaQuantizer])
def test_quantizers_of_weights(cls):
    model = ConvNet()
    bits = 1 if cls is BNNQuantizer else {"weight": 8}
    config = [{"quant_types": ["weight"], "quant_bits": bits, "op_types": ["Conv2d", "Linear"]}]
    quantizer = cls(model, config)
    model = quantizer.compress()
    loop(model, torch.optim.SGD(model.parameters(), lr=0.01))
    assert len(torch.unique(model.fc.weight)) <= (2 if cls is BNNQuantizer else 256)


def test_slim_after_a_training_with_the_penalty_of_the_script():
    model = ConvNet()
    config = [{"sparsity": 0.5, "op_types": ["BatchNorm2d"]}]
    pruner = SlimPruner(model, config, torch.optim.SGD(model.parameters(), lr=0.01))
    model = pruner.compress()
    assert sum(int((m.weight == 0).sum()) for m in (model.bn1, model.bn2)) == 8


@pytest.mark.slow
@pytest.mark.parametrize("name", ["annealing", "net adapt", "admm", "auto compress"])
def test_pruners_that_search(name, tmp_path):
    model = ConvNet()
    folder = str(tmp_path / "data")
    optimizer = torch.optim.Adam(model.parameters())
    pruner = {
        "annealing": lambda: SimulatedAnnealingPruner(
            model,
            CONVOLUTIONS,
            evaluator=evaluator,
            base_algo="l1",
            cool_down_rate=0.3,
            experiment_data_dir=folder,
        ),
        "net adapt": lambda: NetAdaptPruner(
            model,
            CONVOLUTIONS,
            short_term_fine_tuner=lambda model, epochs=1: None,
            evaluator=evaluator,
            base_algo="l1",
            experiment_data_dir=folder,
        ),
        "admm": lambda: ADMMPruner(
            model, CONVOLUTIONS, optimizer, trainer=trainer, num_iterations=2, training_epochs=2
        ),
        "auto compress": lambda: AutoCompressPruner(
            model,
            CONVOLUTIONS,
            optimizer,
            trainer=trainer,
            evaluator=evaluator,
            dummy_input=images(),
            num_iterations=2,
            optimize_mode="maximize",
            base_algo="l1",
            cool_down_rate=0.3,
            admm_num_iterations=1,
            admm_training_epochs=1,
            experiment_data_dir=folder,
        ),
    }[name]()
    model = pruner.compress()
    dense = count_flops_params(ConvNet(), images()).params
    kept = sum(int(torch.count_nonzero(m.weight)) for m in (model.conv1, model.conv2))
    assert kept < 54 + 540
    pruner.export_model(str(tmp_path / "model.pth"), str(tmp_path / "mask.pth"))
    fresh = ConvNet()
    fresh.load_state_dict(torch.load(tmp_path / "model.pth", weights_only=True))
    engine.apply_masks(fresh, str(tmp_path / "mask.pth"))
    engine.speedup.speedup(fresh, images())
    flops, params, _ = count_flops_params(fresh, (1, 1, 8, 8))
    assert flops
    assert params <= dense
    assert isinstance(fresh.conv1, nn.Conv2d)
