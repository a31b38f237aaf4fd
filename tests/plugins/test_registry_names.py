"""Whose a name is when two distributions want it."""

import pytest
from fakes import row


def test_the_engine_keeps_its_names(site):
    site.plugin("level", "other")
    assert row("level", "engine") == ("ok", "")
    assert row("level", "other") == (
        "clash",
        'also offered by engine 0.1.0; this one is "other:level"',
    )


def test_two_strangers_with_one_name_clash(site):
    site.plugin("x", "one", "1.0")
    site.plugin("x", "two", "2.0")
    assert row("x", "one") == ("clash", 'also offered by two 2.0; this one is "one:x"')
    assert row("x", "two") == ("clash", 'also offered by one 1.0; this one is "two:x"')


def test_a_broken_stranger_does_not_take_a_name_away(site):
    site.plugin("x", "one")
    site.plugin("x", "two", schema=None)
    assert row("x", "one") == ("ok", "")
    assert row("x", "two")[0] == "broken"


def test_prefer_picks_one(site, monkeypatch):
    site.plugin("x", "one")
    site.plugin("x", "Two.Plugin")
    monkeypatch.setenv("ENGINE_PREFER", "x = two-plugin, y=nobody,,z")
    assert row("x", "Two.Plugin") == ("ok", "")
    assert row("x", "one") == (
        "clash",
        'ENGINE_PREFER picks two-plugin; this one is "one:x"',
    )


def test_prefer_wins_over_the_engine(site, monkeypatch):
    site.plugin("level", "other")
    monkeypatch.setenv("ENGINE_PREFER", "level=other")
    assert row("level", "other") == ("ok", "")
    assert row("level", "engine")[0] == "clash"


@pytest.mark.parametrize("item", ["x", "one", "one:x", " nobody ,ONE:x"])
def test_block_takes_a_plugin_out_and_frees_its_name(site, monkeypatch, item):
    site.plugin("x", "one")
    site.plugin("x", "two")
    monkeypatch.setenv("ENGINE_BLOCK", item)
    assert row("x", "one") == ("blocked", "listed in ENGINE_BLOCK")
    expected = "blocked" if item == "x" else "ok"
    assert row("x", "two")[0] == expected
