"""What ``engine list-algorithms --extensions`` says of order and activation is true."""

import torch
from torch import nn

import engine
from engine import cli
from engine.algorithms import LevelPruner
from engine.extensions import DependencyAware

HALF = [{"sparsity": 0.5, "op_types": ["Linear"]}]


class Notes:
    """Writes down when it was asked."""

    def __init__(self, name, notes):
        self.name, self.notes = name, notes

    @engine.hookimpl(wrapper=True)
    def calc_mask(self):
        masks = yield
        self.notes.append(self.name)
        return masks


def test_the_listing_says_so(capsys):
    assert cli.main(["list-algorithms", "--extensions"]) == 0
    listing = capsys.readouterr().out
    assert "none is active unasked" in listing
    assert "in the order of that list, each around those before it" in listing
    assert cli.main(["list-algorithms"]) == 0
    assert "unasked" not in capsys.readouterr().out


def test_none_is_active_unasked(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    pruner = LevelPruner(nn.Linear(4, 2), HALF)
    model = pruner.compress()
    pruner.update_epoch(0)
    model(torch.randn(2, 4)).sum().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert pruner._stack.plugins == (pruner,)
    pruner.unwrap()
    assert capfd.readouterr() == ("", "")
    assert not list(tmp_path.iterdir())


def test_they_take_effect_in_the_order_of_the_list():
    notes = []
    extensions = [Notes("first", notes), Notes("second", notes), Notes("third", notes)]
    LevelPruner(nn.Linear(4, 2), HALF, extensions=extensions).compress()
    assert notes == ["first", "second", "third"]


def test_one_that_an_argument_asks_for_is_the_first_of_all():
    outer = Notes("named", [])
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2))
    config = {"compressor": "l1_filter", "config_list": HALF, "dependency_aware": True}
    example = torch.randn(2, 4)
    pruner = engine.create_compressor(model, config, extensions=[outer], dummy_input=example)
    pruner.compress()
    _, own, named = pruner._stack.plugins
    assert isinstance(own, DependencyAware)
    assert named is outer


def test_a_configuration_gives_the_order_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["log", "dependency_aware", "channel_rounding"]
    config = {"compressor": "l1_filter", "config_list": HALF, "extensions": names}
    pruner = engine.create_compressor(nn.Linear(4, 8), config)
    found = [type(extension).__name__ for extension in pruner.extensions]
    assert found == ["Log", "DependencyAware", "ChannelRounding"]
