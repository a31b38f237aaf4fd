import json

import pytest
from fakes import with_facts

from engine import config
from engine.plugins import registry

LEVEL = """\
level: Level pruner
Removes the weights of smallest magnitude, one by one, in each layer.

  kind          pruner
  class         plugins_builtin.level:LevelPruner
  distribution  engine 0.1.0
  status        ok
  paper         Song Han, Jeff Pool, John Tran, William J. Dally. Learning both Weights and
                Connections for Efficient Neural Networks. 2015
                arXiv:1506.02626

Settings of an entry of config_list
NAME      DEFAULT   VALUE
sparsity  required  a number, 0 <= sparsity < 1
      Fraction of each layer's weights to remove
op_types  none      a list of layer types, such as [Conv2d, Linear] or [default]
      Names of layer classes; "default" stands for the algorithm's own choice
op_names  none      a list of layer names or patterns, such as [conv1, layer1.*.fc]
      Dotted names of layers in the model, globs (encoder.*.query) or regular expressions
      (re:.*_proj); no names: layers are not chosen by name
exclude   false     true or false
      true: leave these layers alone, whatever earlier entries say

Example
  compression:
    framework: torch
    type: pruning
    compressor: level
    config_list:
    - sparsity: 0.8
      op_types: [default]
    - sparsity: 0.6
      op_names: [fc1]
    - exclude: true
      op_names: [conv1]
"""


def test_a_page(run):
    assert run("show", "level") == (0, LEVEL, "")
    assert run("show", "LevelPruner")[1] == LEVEL


@pytest.mark.parametrize("name", [p.name for p in registry.algorithms()])
def test_every_page_fits_and_its_example_validates(run, file, name):
    code, output, errors = run("show", name)
    assert (code, errors) == (0, "")
    assert max(map(len, output.splitlines())) <= 100
    example = output.partition("\nExample\n")[2]
    path = file("".join(f"{line[2:]}\n" for line in example.splitlines()))
    assert run("validate", path)[0] == 0


def test_a_page_as_json(run):
    facts = json.loads(run("show", "qat", "--json")[1])
    assert facts["class"] == "plugins_builtin.qat:QAT_Quantizer"
    assert facts["schema"] == registry.find("qat").schema
    assert config.check(facts["example"]).plugin.name == "qat"


def test_a_page_of_a_plugin_that_is_not_there_or_broken(run, site):
    assert run("show", "levle") == (2, "", str(registry.resolve("levle")) + "\n")
    site.plugin("lut", "lut-plugin", schema=None)
    assert run("show", "lut") == (
        2,
        "",
        "lut (lut-plugin 1.0) is broken: no schema.json beside lut_plugin\n"
        '  reinstall or upgrade lut-plugin, or set ENGINE_BLOCK="lut-plugin"\n',
    )


def test_a_page_of_an_extension(run, site):
    schema = with_facts(kind="any", role="watcher")
    schema["properties"] = {
        "every": {"type": "integer", "minimum": 1, "default": 10, "description": "How often"}
    }
    schema["examples"] = [{"every": 5}]
    site.plugin("bars", "bars", group="extensions", schema=schema)
    assert run("show", "bars", "--extension")[1] == (
        "bars: A test's pruner\n\n"
        "  kind          watcher\n  class         bars:Pruner\n"
        "  distribution  bars 1.0\n  status        ok\n\n"
        "Arguments\nNAME   DEFAULT  VALUE\nevery  10       a whole number, every >= 1\n"
        "      How often\n\n"
        "Example\n  extensions:\n  - bars: {every: 5}\n"
    )
