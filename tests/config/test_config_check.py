import pytest
from built_in import ALGORITHMS
from checking import entry, message, section

from engine import config
from engine.errors import ConfigError, Problem


def test_a_section_alone_and_in_an_experiment_mean_the_same():
    alone = config.check(section())
    whole = config.check({"name": "x", "resource": "cpu", "compression": section()})
    assert (alone.pointer, whole.pointer) == ("", "/compression")
    assert alone[:7] == whole[:7]


def test_defaults_are_filled_in_and_numbers_get_their_type():
    settings = config.check(
        entry(
            "slim",
            {"sparsity": 0, "op_types": ["BatchNorm2d"]},
            {"exclude": True, "op_names": ["a"]},
            training_epochs=3.0,
        )
    )
    assert settings.kind == "pruning"
    assert settings.entries == [
        {"sparsity": 0.0, "op_types": ["BatchNorm2d"], "exclude": False},
        {"exclude": True, "op_names": ["a"]},
    ]
    assert settings.arguments == {
        "dependency_aware": False,
        "regular_scale": 0.0001,
        "training_epochs": 3,
    }
    assert [type(v) for v in settings.arguments.values()] == [bool, float, int]
    assert type(settings.entries[0]["sparsity"]) is float
    assert settings.given_arguments == {"training_epochs": 3.0}
    assert settings.config_list[0] == {"sparsity": 0, "op_types": ["BatchNorm2d"]}


def test_a_schedule_takes_the_settings_of_the_pruner_inside():
    settings = config.check(
        entry(
            "agp",
            {"final_sparsity": 0.8, "end_epoch": 4, "op_types": ["Conv2d"]},
            pruning_algorithm="apoz",
            activation="relu6",
        )
    )
    assert (settings.plugin.name, settings.base_plugin.name) == (
        "agp",
        "activation_apoz_rank_filter",
    )
    assert settings.entries == [
        {
            "initial_sparsity": 0.0,
            "final_sparsity": 0.8,
            "start_epoch": 0,
            "end_epoch": 4,
            "frequency": 1,
            "op_types": ["Conv2d"],
            "exclude": False,
            "sparsity": 0.8,
        }
    ]
    assert settings.arguments == {
        "pruning_algorithm": "apoz",
        "activation": "relu6",
        "statistics_batch_num": 1,
        "dependency_aware": False,
    }
    assert settings.base_arguments == {
        "activation": "relu6",
        "dependency_aware": False,
        "statistics_batch_num": 1,
    }


def test_the_pruner_inside_has_a_default():
    settings = config.check(entry("agp", {"final_sparsity": 0, "end_epoch": 1, "op_names": ["a"]}))
    assert settings.base_plugin.name == "level"


@pytest.mark.parametrize("given", [{}, {"config_list": []}])
def test_naive_needs_no_config_list(given):
    settings = config.check({"compressor": "naive", **given})
    assert settings.entries == [
        {"quant_types": ["weight"], "quant_bits": 8, "op_types": ["default"], "exclude": False}
    ]


def test_bits_may_be_one_number_or_one_for_each_type():
    one = {"quant_types": ["weight", "output"], "quant_bits": 8, "op_types": ["default"]}
    each = {**one, "quant_bits": {"weight": 4, "output": 8.0}}
    settings = config.check(entry("qat", one, each))
    assert [e["quant_bits"] for e in settings.entries] == [8, {"weight": 4, "output": 8}]


@pytest.mark.parametrize("framework", ["torch", "pytorch"])
def test_both_names_of_the_framework(framework):
    assert config.check(section(framework=framework, type="pruning")).kind == "pruning"


def test_members_that_differ_are_named_both_ways():
    bits = {"quant_types": ["weight"], "quant_bits": {"abc": 8}, "op_types": ["a"]}
    allowed = "as a mapping, quant_bits has one value for each of quant_types"
    assert message(entry("qat", bits)) == (
        "configuration: 2 problems\n\n"
        f'/config_list/0/quant_bits\n  quant_bits has nothing for "weight"\n  {allowed}\n\n'
        f'/config_list/0/quant_bits/abc\n  "abc" is not one of quant_types\n  {allowed}'
    )


def test_an_unknown_algorithm_does_not_hide_other_mistakes(site):
    text = message(section("levle", framework="jax", config_list=3))
    assert text.splitlines()[0] == "configuration: 3 problems"
    assert (
        f'/compressor\n  unknown algorithm "levle"\n  installed: {", ".join(ALGORITHMS)}\n'
        '  did you mean "level"?'
    ) in text


def test_an_unknown_pruner_inside_does_not_make_its_settings_unknown():
    one = {"final_sparsity": 1.5, "end_epoch": 2, "op_names": ["a"], "its_own": 3}
    text = message(entry("agp", one, pruning_algorithm="nothing like it", argument_of_it=1))
    assert [line for line in text.splitlines() if line.startswith("/")] == [
        "/config_list/0/final_sparsity",
        "/pruning_algorithm",
    ]


def test_all_problems_come_at_once_in_the_order_of_the_file(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(
        "name: 3\n"
        "compression:\n"
        "  type: quantization\n"
        "  compressor: level\n"
        "  config_list:\n"
        "    - sparsity: 1.5\n"
        "      op_types: Conv2d\n"
        "    - sparsity: 0.5\n"
        "  foo: 1\n"
    )
    with pytest.raises(ConfigError) as caught:
        config.check(path)
    assert [(p.pointer, p.line) for p in caught.value.problems] == [
        ("/name", 1),
        ("/compression/type", 3),
        ("/compression/config_list/0/sparsity", 6),
        ("/compression/config_list/0/op_types", 7),
        ("/compression/config_list/1", 8),
        ("/compression/foo", 9),
    ]
    assert caught.value.source == str(path)


def test_the_error_of_a_class_is_put_in_its_place(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(
        "compression:\n  compressor: level\n  config_list:\n"
        "    - sparsity: 0.5\n      op_names: [conv]\n"
    )
    settings = config.check(path)
    error = settings.located(
        ConfigError([Problem("no such layer", "/config_list/0/op_names/0")], "LevelPruner")
    )
    assert (error.source, error.problems) == (
        str(path),
        (Problem("no such layer", "/compression/config_list/0/op_names/0", 5),),
    )


def test_a_list_alone_names_no_algorithm():
    with pytest.raises(ConfigError) as caught:
        config.check(config.read([{"sparsity": 0.5}]))
    assert str(caught.value) == (
        "config_list: 1 problem\n\n/\n  a list alone names no algorithm\n"
        "  a mapping with the keys compressor and config_list does"
    )
