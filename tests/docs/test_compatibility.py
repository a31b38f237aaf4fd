"""What docs/compatibility.md promises, as far as no test of the registry holds it already."""

import json
import re
from pathlib import Path

import pytest

import engine
from engine import cli, testing
from engine.plugins import registry
from engine.plugins.hook_calls import adapt
from engine.plugins.stack import HOOKS

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "compatibility.md").read_text()


@pytest.mark.parametrize("hook", HOOKS)
def test_a_plugin_that_takes_no_argument_works_under_every_hook(hook):
    call = adapt(None, hook, lambda: "called", HOOKS[hook])
    assert call(*range(len(HOOKS[hook]))) == "called"


@pytest.mark.parametrize("hook", [hook for hook in HOOKS if HOOKS[hook]])
def test_a_plugin_is_passed_what_it_names_whatever_is_added(hook):
    last = HOOKS[hook][-1]
    method = eval(f"lambda {last}: {last}")
    call = adapt(None, hook, method, (*HOOKS[hook], "added"))
    assert call(*HOOKS[hook], "something new") == last


@pytest.mark.parametrize("module", [engine, testing], ids=lambda module: module.__name__)
def test_every_public_name_is_there(module):
    for name in module.__all__:
        assert getattr(module, name) is not None


def test_the_version_on_the_page_is_this_engines():
    from engine.api_version import API_VERSION

    (declared,) = re.findall(r'"api": "([0-9.]+)"', PAGE)
    assert tuple(map(int, declared.split("."))) == API_VERSION


def test_every_built_in_is_written_for_the_version_that_it_needs():
    own = [p for p in registry.algorithms() if p.comes_from(registry.OWN_DISTRIBUTION)]
    assert {plugin.api for plugin in own} == {"1.0", "1.1"}
    assert {p.name for p in own if p.calibration} == {p.name for p in own if p.api == "1.1"}


KEYS = {
    *("name", "kind", "role", "status", "reason", "distribution", "version"),
    *("class", "api", "summary", "paper", "aliases", "capabilities"),
}


def test_the_keys_that_scripts_read_are_there(capsys):
    for arguments in (["list-algorithms", "--json"], ["list-algorithms", "--extensions", "--json"]):
        assert cli.main(arguments) == 0
        for row in json.loads(capsys.readouterr().out):
            assert row.keys() >= KEYS
    assert cli.main(["show", "level", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["api"] == "1.0"
