"""AGP and lottery tickets: how much when, over any pruner."""

import warnings
from fractions import Fraction

import pytest
import torch
from models import (
    ConvNet,
    calibration_of,
    images,
    mlp,
    pruner_plugins,
    settings_of,
    train_step,
    zeros,
)
from torch import nn

from engine import EngineError, Pruner
from engine.algorithms import AGPPruner, LinearPruner, LotteryTicketPruner
from engine.pruning import Channels

PROVIDERS = [plugin.name for plugin in pruner_plugins("provider")]


class Stranger(Pruner):
    """As an algorithm is written for NNI: it reads the fraction in the configuration."""

    def calc_mask(self, wrapper, wrapper_idx=None):
        weight = wrapper.module.weight.detach().abs() * wrapper.weight_mask
        count = int(weight.numel() * wrapper.config["sparsity"] + 1e-6)
        ranks = weight.flatten().argsort(stable=True).argsort()
        return {"weight_mask": (ranks >= count).view_as(weight).to(weight.dtype)}


class Asked(Pruner):
    """Removes nothing and remembers what it was asked for."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.seen = []

    def calc_mask(self, wrapper, sparsity):
        self.seen.append(sparsity)
        return {"weight_mask": torch.ones_like(wrapper.weight)}


def paper(epoch, initial, final, start, end, frequency):
    """Eq. 1 for t in {t0, t0 + dt, ...}, nothing before t0, constant from the end on."""
    if epoch < start:
        return 0
    if epoch >= end:
        return final
    t = start
    while t + frequency <= epoch:
        t += frequency
    return final + (initial - final) * (1 - (t - start) / (end - start)) ** 3


def batches_for(algorithm):
    """What a pruner inside is calibrated with, if it is one of the installed that are."""
    return calibration_of(algorithm) if isinstance(algorithm, str) else {}


def agp(model, pruning_algorithm="level", optimizer=None, **entry):
    entry = {"final_sparsity": 0.8, "end_epoch": 4, "op_types": ["default"], **entry}
    batches = batches_for(pruning_algorithm)
    return AGPPruner(model, [entry], optimizer, pruning_algorithm=pruning_algorithm, **batches)


@pytest.mark.parametrize("initial", [0, 0.1])
@pytest.mark.parametrize(
    ("start", "end", "frequency"), [(0, 10, 1), (0, 1, 1), (3, 9, 2), (2, 9, 3), (1, 4, 5)]
)
def test_agp_asks_for_the_paper_formula_in_every_epoch(initial, start, end, frequency):
    pruner = agp(
        mlp(4, 3),
        Asked,
        initial_sparsity=initial,
        final_sparsity=0.83,
        start_epoch=start,
        end_epoch=end,
        frequency=frequency,
    )
    pruner.compress()
    for epoch in range(14):
        pruner.base.seen.clear()
        pruner.update_epoch(epoch)
        pruner.step()
        expected = paper(epoch, initial, 0.83, start, end, frequency)
        assert pruner.base.seen == pytest.approx([expected], abs=1e-12)
        config = pruner.get_modules_wrapper()[0].config
        assert pruner.compute_target_sparsity(config) == pytest.approx(expected, abs=1e-12)


def test_agp_by_hand():
    # 0.8 - 0.8 (1 - t/4)^3 for t = 0..4
    pruner = agp(nn.Linear(10, 100), initial_sparsity=0, op_types=["Linear"])
    model = pruner.compress()
    counts = []
    for epoch in range(6):
        pruner.update_epoch(epoch)
        pruner.step()
        counts.append(zeros(model.weight))
    assert counts == [0, 462, 700, 787, 800, 800]


def test_the_first_epoch_is_pruned_at_attach_already():
    model = nn.Linear(10, 10)
    agp(model, initial_sparsity=0.3, op_types=["Linear"]).compress()
    assert zeros(model.weight) == 30


@pytest.mark.parametrize("base", [*PROVIDERS, Stranger], ids=str)
def test_masks_are_nested_and_exact_over_every_pruner(base):
    model = ConvNet()
    pruner = agp(model, base, initial_sparsity=0.1)
    pruner.compress()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    before = {}
    for epoch in range(6):
        pruner.update_epoch(epoch)
        for batch in range(3):
            train_step(model, optimizer, images(seed=batch))
        wrappers = pruner.get_modules_wrapper()
        removed = sum(zeros(w.weight_mask) for w in wrappers)
        total = sum(w.weight.numel() for w in wrappers)
        one_each = sum(w.weight.numel() / Channels(w.module).count for w in wrappers)
        assert abs(removed - total * paper(epoch, 0.1, 0.8, 0, 4, 1)) < one_each
        for wrapper in wrappers:
            earlier = before.get(wrapper.name, wrapper.weight_mask)
            assert (wrapper.weight_mask <= earlier).all()
            before[wrapper.name] = wrapper.weight_mask.clone()
            assert not wrapper.weight[wrapper.weight_mask == 0].any()


def test_nested_also_where_weights_become_exactly_zero_by_themselves():
    model = nn.Linear(10, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.arange(10.0, 0, -1))
    pruner = agp(model, op_types=["Linear"], initial_sparsity=0.2, final_sparsity=0.3, end_epoch=1)
    pruner.compress()
    (wrapper,) = pruner.get_modules_wrapper()
    assert wrapper.weight_mask.tolist() == [[1, 1, 1, 1, 1, 1, 1, 1, 0, 0]]
    with torch.no_grad():
        model.weight[0, :5] = 0
    pruner.update_epoch(1)
    pruner.step()
    assert wrapper.weight_mask.tolist() == [[0, 1, 1, 1, 1, 1, 1, 1, 0, 0]]


def test_masks_change_in_the_first_step_of_an_epoch_and_then_stand():
    model = mlp(6, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    pruner = agp(model, optimizer=optimizer)
    pruner.compress()
    pruner.update_epoch(1)
    assert zeros(model[0].weight) == 0
    train_step(model, optimizer, torch.randn(5, 6))
    mask = pruner.get_modules_wrapper()[0].weight_mask
    kept = mask.clone()
    assert zeros(kept) == int(48 * paper(1, 0, 0.8, 0, 4, 1))
    for _ in range(3):
        train_step(model, optimizer, torch.randn(5, 6))
    assert pruner.get_modules_wrapper()[0].weight_mask is mask
    assert torch.equal(mask, kept)


def test_entries_with_schedules_of_their_own():
    model = mlp(10, 10, 10)
    pruner = AGPPruner(
        model,
        [
            {"final_sparsity": 0.8, "end_epoch": 2, "op_types": ["Linear"]},
            {"final_sparsity": 0.5, "start_epoch": 2, "end_epoch": 3, "op_names": ["2"]},
        ],
    )
    pruner.compress()
    counts = []
    for epoch in range(4):
        pruner.update_epoch(epoch)
        pruner.step()
        counts.append((zeros(model[0].weight), zeros(model[2].weight)))
    assert counts == [(0, 0), (70, 0), (80, 0), (80, 50)]


def test_slim_under_agp_ranks_globally_at_each_fraction():
    model = nn.Sequential(nn.BatchNorm1d(10), nn.BatchNorm1d(10))
    with torch.no_grad():
        model[0].weight.copy_(torch.arange(10.0) + 1)
        model[1].weight.copy_(torch.arange(10.0) + 101)
    pruner = agp(model, "slim", final_sparsity=0.4, end_epoch=2)
    pruner.compress()
    counts = []
    for epoch in range(3):
        pruner.update_epoch(epoch)
        pruner.step()
        counts.append((zeros(model[0].weight), zeros(model[1].weight)))
    # 0.4 (1 - 1/8) = 0.35 of 20
    assert counts == [(0, 0), (7, 0), (8, 0)]


def test_the_pruner_inside_knows_epoch_and_optimizer():
    class Curious(Stranger):
        def calc_mask(self, wrapper, wrapper_idx=None):
            self.seen = (self.epoch, self.optimizer)
            return super().calc_mask(wrapper, wrapper_idx)

    model = mlp(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = agp(model, Curious, optimizer)
    pruner.compress()
    pruner.update_epoch(3)
    train_step(model, optimizer, torch.randn(2, 4))
    assert pruner.base.seen == (3, optimizer)


def test_names_as_nni_users_know_them():
    for name in ("l1", "l2", "fpgm", "level", "slim", "taylorfo", "apoz", "mean_activation"):
        assert agp(ConvNet(), name).base.plugin_name in PROVIDERS


# -- lottery tickets ------------------------------------------------------------------------------


def lottery(model, rounds=3, **arguments):
    entry = {"sparsity": 0.875, "prune_iterations": rounds, "op_types": ["default"]}
    arguments.update(batches_for(arguments.get("pruning_algorithm")))
    return LotteryTicketPruner(model, [entry], **arguments)


def test_each_round_removes_the_same_share_of_what_is_left():
    # 1 - 0.125^(i/3): 0, a half, three quarters, seven eighths.
    model = nn.Linear(10, 40)
    pruner = lottery(model)
    pruner.compress()
    counts = []
    for _ in pruner.get_prune_iterations():
        pruner.prune_iteration_start()
        counts.append(zeros(model.weight))
    assert counts == [0, 200, 300, 350]


@pytest.mark.parametrize("rounds", [1, 2, 5])
def test_the_rounds_follow_the_formula(rounds):
    pruner = lottery(mlp(4, 3), rounds, pruning_algorithm=Asked)
    pruner.compress()
    pruner.base.seen.clear()
    for _ in pruner.get_prune_iterations():
        pruner.prune_iteration_start()
    expected = [1 - (1 - 0.875) ** (i / rounds) for i in range(rounds + 1)]
    assert pruner.base.seen == pytest.approx(expected, abs=1e-12)


def test_weights_optimizer_and_learning_rate_are_rewound():
    model = mlp(6, 8, 4)
    first = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    pruner = lottery(model, optimizer=optimizer, lr_scheduler=scheduler)
    pruner.compress()
    trained = {}
    for round_ in pruner.get_prune_iterations():
        if round_ > 0:
            trained = {w.name: w.weight.detach().clone() for w in pruner.get_modules_wrapper()}
        pruner.prune_iteration_start()
        assert optimizer.state_dict()["state"] == {}
        assert optimizer.param_groups[0]["lr"] == 0.1
        assert scheduler.last_epoch == 0
        for wrapper in pruner.get_modules_wrapper():
            mask = wrapper.weight_mask
            assert torch.equal(wrapper.weight, first[f"{wrapper.name}.weight"] * mask)
            if round_ > 0:
                # The weights that trained to the smallest magnitudes have gone.
                old = trained[wrapper.name].abs()
                assert old[mask == 0].max() <= old[mask == 1].min()
        for epoch in range(2):
            pruner.update_epoch(epoch)
            train_step(model, optimizer, torch.randn(5, 6))
            scheduler.step()
            for wrapper in pruner.get_modules_wrapper():
                assert not wrapper.weight[wrapper.weight_mask == 0].any()


def test_weights_are_rewound_to_the_epoch_that_is_asked_for():
    model = mlp(6, 8, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    pruner = lottery(model, 2, optimizer=optimizer, rewind_epoch=2)
    pruner.compress()
    early = {}
    for round_ in pruner.get_prune_iterations():
        pruner.prune_iteration_start()
        for name, expected in early.items():
            wrapper = next(w for w in pruner.wrappers if w.name == name)
            assert torch.equal(wrapper.weight, expected * wrapper.weight_mask)
            assert optimizer.state[wrapper.weight]["momentum_buffer"].abs().max() > 0
        for epoch in range(2 if round_ else 0, 4):
            if epoch == 2 and not round_:
                early = {w.name: w.weight.detach().clone() for w in pruner.wrappers}
            pruner.update_epoch(epoch)
            train_step(model, optimizer, torch.randn(5, 6))


def test_without_the_epoch_there_is_nothing_to_rewind_to():
    pruner = lottery(mlp(4, 3), 2, rewind_epoch=3)
    pruner.compress()
    pruner.prune_iteration_start()
    with pytest.raises(EngineError, match=r"update_epoch\(3\) was not called in the dense round"):
        pruner.prune_iteration_start()


def test_without_rewinding_the_trained_weights_stay():
    model = mlp(6, 8)
    pruner = lottery(model, reset_weights=False)
    pruner.compress()
    pruner.prune_iteration_start()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    train_step(model, optimizer, torch.randn(5, 6))
    before = model[0].weight.detach().clone()
    pruner.prune_iteration_start()
    mask = pruner.get_modules_wrapper()[0].weight_mask
    assert torch.equal(model[0].weight, before * mask)


def test_more_rounds_than_configured_are_refused():
    pruner = lottery(mlp(4, 3), 1)
    pruner.compress()
    for _ in pruner.get_prune_iterations():
        pruner.prune_iteration_start()
    with pytest.raises(EngineError, match="all 2 rounds are done"):
        pruner.prune_iteration_start()


@pytest.mark.parametrize("base", [*PROVIDERS, Stranger], ids=str)
def test_lottery_over_every_pruner(base):
    model = ConvNet()
    pruner = lottery(model, 2, pruning_algorithm=base)
    pruner.compress()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in pruner.get_prune_iterations():
        pruner.prune_iteration_start()
        for epoch in range(2):
            pruner.update_epoch(epoch)
            for batch in range(3):
                train_step(model, optimizer, images(seed=batch))
    wrappers = pruner.get_modules_wrapper()
    removed = sum(zeros(w.weight_mask) for w in wrappers)
    total = sum(w.weight.numel() for w in wrappers)
    one_each = sum(w.weight.numel() / Channels(w.module).count for w in wrappers)
    assert abs(removed - total * 0.875) < one_each


@pytest.mark.parametrize("schedule", [p.name for p in pruner_plugins("schedule")])
def test_every_schedule_over_every_pruner_can_be_attached_and_detached(schedule):
    plugin = next(p for p in pruner_plugins("schedule") if p.name == schedule)
    for base in PROVIDERS:
        model = ConvNet()
        settings = settings_of(plugin)
        settings[plugin.base_argument] = base
        settings.update(batches_for(base))
        pruner = plugin.load()(model, **settings)
        pruner.compress()
        model(images())
        pruner.unwrap()
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_parameters_that_joined_the_optimizer_begin_anew_when_the_others_are_rewound():
    """A quantizer that learns its grid adds them after the start was saved."""
    model = mlp(6, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    pruner = lottery(model, 1, optimizer=optimizer)
    pruner.compress()
    start = [parameter.detach().clone() for parameter in model.parameters()]
    pruner.prune_iteration_start()
    joined = nn.Parameter(torch.ones(3))
    optimizer.param_groups[0]["params"].append(joined)
    (model(torch.randn(5, 6)).sum() + joined.sum()).backward()
    optimizer.step()
    assert optimizer.state[joined]
    pruner.prune_iteration_start()
    assert [parameter is joined for parameter in optimizer.param_groups[0]["params"]][-1]
    assert not optimizer.state[joined]
    mask = pruner.get_modules_wrapper()[0].weight_mask
    assert torch.equal(model[0].weight, start[0] * mask)


# -- linear ---------------------------------------------------------------------------------------


def linear(model, pruning_algorithm="level", **entry):
    entry = {"final_sparsity": 0.8, "end_epoch": 4, "op_types": ["default"], **entry}
    return LinearPruner(model, [entry], pruning_algorithm=pruning_algorithm)


@pytest.mark.parametrize("initial", [0, 0.1])
@pytest.mark.parametrize(
    ("start", "end", "frequency"), [(0, 10, 1), (0, 1, 1), (3, 9, 2), (2, 9, 3), (1, 4, 5)]
)
def test_linear_asks_for_points_on_the_straight_line(initial, start, end, frequency):
    pruner = linear(
        mlp(4, 3),
        Asked,
        initial_sparsity=initial,
        start_epoch=start,
        end_epoch=end,
        frequency=frequency,
    )
    pruner.compress()
    for epoch in range(12):
        pruner.update_epoch(epoch)
        pruner.update_masks()
        raised = [t for t in range(start, epoch + 1, frequency) if t < end]
        expected = 0.8 if epoch >= end else 0.0
        if raised and epoch < end:
            share = Fraction(raised[-1] - start, end - start)
            expected = initial + (0.8 - initial) * float(share)
        assert pruner.base.seen[-1] == pytest.approx(expected, abs=1e-12)


def test_linear_removes_as_much_in_each_epoch():
    model = mlp(10, 4)  # 40 weights
    pruner = linear(model)
    pruner.compress()
    counts = []
    for epoch in range(6):
        pruner.update_epoch(epoch)
        pruner.update_masks()
        counts.append(zeros(model[0].weight))
    assert counts == [0, 8, 16, 24, 32, 32]


@pytest.mark.parametrize(
    ("cls", "settings", "reason"),
    [
        (AGPPruner, {"final_sparsity": 0.5, "end_epoch": 3}, "agp: update_epoch was never called"),
        (LinearPruner, {"final_sparsity": 0.5, "end_epoch": 3}, "linear: update_epoch was never"),
        (
            LotteryTicketPruner,
            {"sparsity": 0.5, "prune_iterations": 3},
            "lottery_ticket: prune_iteration_start was never called",
        ),
    ],
)
def test_a_schedule_that_was_never_told_of_epochs_says_so(cls, settings, reason, tmp_path):
    model = mlp(6, 8, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = cls(model, [{"op_types": ["Linear"], **settings}], optimizer)
    pruner.compress()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pruner.export_model(tmp_path / "untrained.pth")
    train_step(model, optimizer, torch.randn(5, 6))
    with pytest.warns(UserWarning, match=reason):
        pruner.export_model(tmp_path / "model.pth")
    pruner.update_epoch(3)
    if cls is LotteryTicketPruner:
        pruner.prune_iteration_start()
    train_step(model, optimizer, torch.randn(5, 6))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pruner.export_model(tmp_path / "model.pth")
