import sys
import traceback

import pytest
from built_in import ALGORITHMS, EXTENSIONS
from fakes import with_facts

from engine.errors import PluginError
from engine.plugins import registry


def message(name, group=registry.ALGORITHMS):
    with pytest.raises(PluginError) as caught:
        registry.find(name, group)
    return str(caught.value)


@pytest.mark.parametrize(
    "name", ["agp", "engine:agp", "ENGINE:agp", "AGPPruner", "AGP_Pruner", "AGPruner"]
)
def test_a_plugin_is_found_by_name_qualified_name_class_and_alias(site, name):
    assert registry.find(name).name == "agp"


@pytest.mark.parametrize(
    ("old", "name"),
    [
        ("l1", "l1_filter"),
        ("l2", "l2_filter"),
        ("taylorfo", "taylor_fo_weight_filter"),
        ("apoz", "activation_apoz_rank_filter"),
        ("mean_activation", "activation_mean_rank_filter"),
        ("QATQuantizer", "qat"),
        ("QAT_Quantizer", "qat"),
        ("QATquantizer", "qat"),
        ("L1NormPruner", "l1_filter"),
    ],
)
def test_names_of_older_toolkits_are_known(site, old, name):
    assert registry.find(old).name == name


def test_no_name_means_two_built_in_algorithms(site):
    words = [w for p in registry.algorithms() for w in (p.name, p.attribute, *p.aliases)]
    assert len(words) == len(set(words))


def test_an_unknown_name_gets_the_list_and_the_nearest(site):
    assert message("levle") == (
        f'unknown algorithm "levle"\n  installed: {", ".join(ALGORITHMS)}\n  did you mean "level"?'
    )
    assert message("LevelPrunner").endswith('did you mean "LevelPruner"?')


def test_an_unknown_name_is_an_error_of_its_own(site):
    with pytest.raises(registry.UnknownPlugin) as caught:
        registry.find("nothing like it")
    assert caught.value.plugin == "nothing like it"
    assert "did you mean" not in str(caught.value)


def test_an_extension_is_no_algorithm(site):
    assert message("level", registry.EXTENSIONS) == (
        f'unknown extension "level"\n  installed: {", ".join(EXTENSIONS)}'
    )


def test_a_broken_plugin_says_why_and_what_to_do(site):
    site.plugin("lut", "lut-plugin", "0.3.1", schema=None)
    expected = (
        "lut (lut-plugin 0.3.1) is broken: no schema.json beside lut_plugin\n"
        '  reinstall or upgrade lut-plugin, or set ENGINE_BLOCK="lut-plugin"'
    )
    assert message("lut") == expected
    assert message("lut-plugin:lut") == expected
    (plugin,) = [p for p in registry.algorithms() if p.name == "lut"]
    for use in (plugin.load, lambda: plugin.schema):
        with pytest.raises(PluginError) as caught:
            use()
        assert str(caught.value) == expected
        assert (caught.value.plugin, caught.value.distribution) == ("lut", "lut-plugin 0.3.1")


def test_an_incompatible_plugin_says_for_what_it_was_written(site):
    site.plugin("lut", "lut-plugin", schema=with_facts(api="2.0"))
    assert message("lut") == (
        "lut (lut-plugin 1.0) is incompatible: written for engine API 2.0, this engine has 1.1\n"
        '  upgrade engine, or set ENGINE_BLOCK="lut-plugin"'
    )
    site.plugin("old", "old-plugin", schema=with_facts(api="0.9"))
    assert message("old").endswith('\n  upgrade old-plugin, or set ENGINE_BLOCK="old-plugin"')


def test_a_blocked_plugin_says_by_what(site, monkeypatch):
    monkeypatch.setenv("ENGINE_BLOCK", "engine:level")
    assert message("level") == (
        "level (engine 0.1.0) is blocked: listed in ENGINE_BLOCK\n"
        "  change the environment variable ENGINE_BLOCK to use level"
    )


def test_a_clash_is_solved_by_the_qualified_name_or_by_picking(site, monkeypatch):
    site.plugin("x", "one", "1.0")
    site.plugin("x", "two", "2.0")
    assert message("x") == (
        '"x" is offered by 2 distributions: one 1.0, two 2.0\n'
        '  use "one:x" or "two:x", or pick one with ENGINE_PREFER="x=one"'
    )
    assert registry.find("two:x").load().__module__ == "two"
    monkeypatch.setenv("ENGINE_PREFER", "x=one")
    assert registry.find("x").distribution == "one"
    assert registry.find("two:x").distribution == "two"


def test_a_stranger_with_a_built_in_name_is_used_qualified(site):
    site.plugin("level", "other")
    assert registry.find("level").distribution == "engine"
    assert registry.find("other:level").distribution == "other"


def test_a_class_name_of_several_plugins_must_be_said_better(site):
    site.plugin("x", "one")
    site.plugin("y", "two")
    assert message("Pruner") == (
        '"Pruner" is offered by 2 distributions: one 1.0, two 1.0\n'
        '  use "one:x" or "two:y", or pick one with ENGINE_PREFER="x=one"'
    )


def test_a_missing_dependency_is_named_with_the_distribution(site):
    site.plugin("lut", "lut-plugin", "0.3.1", code="import surely_not_installed\n")
    plugin = registry.find("lut")
    with pytest.raises(PluginError) as caught:
        plugin.load()
    assert str(caught.value) == (
        "lut (lut-plugin 0.3.1) cannot be imported\n"
        "  ModuleNotFoundError: No module named 'surely_not_installed'\n"
        '  see the traceback with: python -c "import lut_plugin"\n'
        "  install what it needs: surely_not_installed, or lut-plugin again with its dependencies"
    )
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)
    assert "lut_plugin" in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        ("raise ValueError('first line\\nsecond line')", "ValueError: first line"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("raise RuntimeError", "RuntimeError"),
        ("", "AttributeError: module 'lut_plugin' has no attribute 'Pruner'"),
        ("Pruner = 3", "lut_plugin:Pruner is int, not a class"),
    ],
)
def test_whatever_an_import_does_becomes_one_line(site, code, cause):
    site.plugin("lut", "lut-plugin", code=code)
    with pytest.raises(PluginError) as caught:
        registry.find("lut").load()
    assert str(caught.value) == (
        f"lut (lut-plugin 1.0) cannot be imported\n  {cause}\n"
        '  see the traceback with: python -c "import lut_plugin"'
    )


def test_a_class_finds_its_plugin(site):
    site.plugin("lut", "lut-plugin")
    plugin = registry.find("lut")
    assert registry.find_class(plugin.load()) is plugin
    assert registry.find_class(int) is None


def test_a_class_that_its_package_re_exports_finds_its_plugin(site):
    site.plugin("lut", "lut-plugin", code="from lut_plugin.inner import Pruner\n")
    site.package("lut_plugin.inner", schema=None)
    plugin = registry.find("lut")
    cls = plugin.load()
    assert cls.__module__ == "lut_plugin.inner"
    assert registry.find_class(cls) is plugin
    assert "lut_plugin.inner" in sys.modules
