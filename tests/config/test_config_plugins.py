"""Plugins of others in a configuration: algorithms and extensions."""

import pytest
from checking import message, problem, section
from fakes import SCHEMA, with_facts

from engine import config
from engine.errors import PluginError


def test_a_strangers_plugin_is_checked_by_its_own_schema(site):
    site.plugin("mine", "my-plugin")
    settings = config.check(section("mine"))
    assert settings.plugin.qualified_name == "my-plugin:mine"
    assert settings.entries == [{"sparsity": 0.5, "op_types": ["default"], "exclude": False}]


def test_a_schema_with_branches_reports_the_closest(site):
    argument = {"anyOf": [{"type": "integer", "minimum": 1}, {"enum": ["auto", "all"]}]}
    properties = {**SCHEMA["properties"], "how": argument}
    site.plugin("mine", "my-plugin", schema={**SCHEMA, "properties": properties})
    assert config.check(section("mine", how="auto")).arguments == {"how": "auto"}
    assert problem(section("mine", how=0)) == ("/how\n  0 is out of range\n  mine needs: how >= 1")
    assert problem(section("mine", how=[])) == (
        "/how\n  a list fits none\n  mine needs: a whole number, value >= 1; or one of auto, all"
    )


@pytest.mark.parametrize(
    ("argument", "reason"),
    [
        (
            {"type": "nmber"},
            "/properties/how/type: 'nmber' is not valid under any of the given schemas",
        ),
        ({"$ref": "#/$defs/gone"}, 'the reference "#/$defs/gone" leads nowhere'),
        (
            {"$ref": "https://example.org/x"},
            'the reference "https://example.org/x" is not to engine:config nor within the file',
        ),
        ({"$ref": "#/properties/how"}, 'the reference "#/properties/how" refers to itself'),
    ],
)
def test_a_schema_that_is_wrong_inside_is_the_plugins_fault(site, argument, reason):
    properties = {**SCHEMA["properties"], "how": argument}
    site.plugin("mine", "my-plugin", schema={**SCHEMA, "properties": properties})
    with pytest.raises(PluginError) as caught:
        config.check(section("mine", how=1))
    assert str(caught.value) == (
        f"mine (my-plugin 1.0) is broken: schema.json cannot be used\n  {reason}\n"
        '  reinstall or upgrade my-plugin, or set ENGINE_BLOCK="my-plugin"'
    )


def test_a_broken_plugin_is_a_problem_of_the_configuration(site):
    site.plugin("mine", "my-plugin", schema=None)
    assert problem(section("mine")) == (
        "/compressor\n  mine (my-plugin 1.0) is broken: no schema.json beside my_plugin\n"
        '  reinstall or upgrade my-plugin, or set ENGINE_BLOCK="my-plugin"'
    )


def test_extensions_are_checked_by_their_schemas(site):
    schema = with_facts(kind="any", role="watcher")
    schema["properties"] = {"every": {"type": "integer", "minimum": 1, "default": 10}}
    schema["required"] = []
    site.plugin("bars", "bars", group="extensions", schema=schema)
    settings = config.check(section(extensions=["bars"]))
    assert settings.extensions == [("bars:bars", {"every": 10})]
    settings = config.check(section(extensions=[{"bars": {"every": 3}}]))
    assert settings.extensions == [("bars:bars", {"every": 3})]
    assert message(section(extensions=[{"bars": {"every": 0, "evry": 1}}, "bars"])) == (
        "configuration: 3 problems\n\n"
        "/extensions/0/bars/every\n  0 is out of range\n  bars needs: every >= 1\n\n"
        '/extensions/0/bars/evry\n  unknown argument "evry"\n  bars allows: every\n\n'
        '/extensions/1\n  "bars" is given twice'
    )


def test_an_extension_for_the_other_kind_is_refused(site):
    schema = with_facts(kind="quantization", role="constraint")
    schema["properties"], schema["required"] = {}, []
    site.plugin("bars", "bars", group="extensions", schema=schema)
    assert problem(section(extensions=["bars"])) == (
        "/extensions/0\n  bars is for quantization, not for pruning"
    )
